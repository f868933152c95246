"""Every decoder of bytes that come from outside: it gives a value, or an error in words."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from google.protobuf.message import Message
from tests.faults.wild import Wild

from partsum.node import control
from partsum.protos.v1 import partsum_pb2 as pb
from partsum.shared import wire, wire_secure
from partsum.shared.config import parse_config
from partsum.shared.encoded import Encoded, write_encoded
from partsum.shared.errors import ConfigError, PartsumError, TaskError, WireError
from partsum.shared.messages import TaskSpec
from partsum.shared.task import load_task
from partsum.shared.tensors import load_tensors, save_tensors

Decoder = tuple[type[Message], Callable[[Any], object]]
DECODERS: dict[str, Decoder] = {
    "incoming": (pb.ControlResponse, control.incoming),
    "assignment_from_wire": (pb.Assignment, wire.assignment_from_wire),
    "part_from_wire": (pb.Part, wire.part_from_wire),
    "settings_from_wire": (pb.TrainSettings, wire.settings_from_wire),
    "update_from_wire": (pb.Update, wire.update_from_wire),
    "blob_from_wire": (pb.Blob, wire.blob_from_wire),
    "status_from_wire": (pb.RunStatus, wire.status_from_wire),
    "chunk_from_wire": (pb.Chunk, lambda chunk: wire.chunk_from_wire(chunk, chunk.offset)),
    "secure open_from_wire": (pb.SecureOpen, wire_secure.open_from_wire),
    "secure keys_from_wire": (pb.SecureKeys, wire_secure.keys_from_wire),
    "secure roster_from_wire": (pb.SecureRoster, wire_secure.roster_from_wire),
    "secure shares_from_wire": (pb.SecureShares, wire_secure.shares_from_wire),
    "secure ask_from_wire": (pb.SecureAsk, wire_secure.ask_from_wire),
    "secure masking_from_wire": (pb.Masking, wire_secure.masking_from_wire),
}


def feed_decoders(folder: Path, rng: random.Random, messages: int) -> Counter[str]:
    """So many messages, in turn to each decoder; how many each got."""
    fed: Counter[str] = Counter()
    wild = Wild(rng, ["partsum.shared.tasks:digits", "run"])
    feeders: dict[str, Callable[[], None]] = {
        **{name: _feed(wild, *decoder) for name, decoder in DECODERS.items()},
        "tensor file": _feed_file(folder / "wild.safetensors", wild),
        "encoded file": _feed_encoded(folder / "encoded.safetensors", wild),
        "config": _feed_config(wild),
        "task name": lambda: _expect(
            TaskError, lambda: load_task(TaskSpec(wild.mutated(b"os.path:join").decode("latin1")))
        ),
    }
    for k in range(messages):
        name = list(feeders)[k % len(feeders)]
        feeders[name]()
        fed[f"decoder {name}"] += 1
    return fed


def _feed(wild: Wild, kind: type[Message], decode: Callable[[Any], object]) -> Callable[[], None]:
    return lambda: _expect(WireError, lambda: decode(wild.message(kind)))


def _feed_file(path: Path, wild: Wild) -> Callable[[], None]:
    state = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(7), "m": torch.tensor([True])}
    save_tensors(path, state, {"part": "a" * 32}, durable=False)
    whole = path.read_bytes()

    def feed() -> None:
        path.write_bytes(wild.mutated(whole) if wild.rng.random() < 0.9 else wild.noise())
        _expect(WireError, lambda: load_tensors(path))

    return feed


def _feed_encoded(path: Path, wild: Wild) -> Callable[[], None]:
    shapes = {"w": (torch.float32, (20, 30)), "b": (torch.float32, (20,))}
    write_encoded(path, shapes, "int8", "a" * 32, lambda name: torch.ones(shapes[name][1]))
    whole = path.read_bytes()

    def decode() -> None:
        with Encoded(path, shapes, "int8", "a" * 32) as encoded:
            for name in shapes:
                encoded.read(name)

    def feed() -> None:
        path.write_bytes(wild.mutated(whole))
        _expect(WireError, decode)

    return feed


def _feed_config(wild: Wild) -> Callable[[], None]:
    text = (Path(__file__).parents[2] / "examples" / "fashion_mlp.toml").read_bytes()

    def feed() -> None:
        changed = wild.mutated(text).decode("utf-8", "surrogateescape")
        _expect(ConfigError, lambda: parse_config(changed))

    return feed


def _expect(error: type[PartsumError], decode: Callable[[], object]) -> None:
    words = ""
    try:
        decode()
    except error as raised:
        words = str(raised)
    assert len(words) < 10_000, "a refusal that fills the log"
