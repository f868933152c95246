"""Rounds in fewer bytes, without a network: real training, what is sent, and what is merged."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.test_workshop import CPU, EQUAL, TASK, close_round, opened, samples, workshop_of
from torch import Tensor

from partsum.coordinator.cutter import blob_of
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.store import Store
from partsum.coordinator.terms import assignment, needs_its_node
from partsum.coordinator.updates import check_claim
from partsum.coordinator.workshop import Workshop
from partsum.node.encoder import build_start, encode_update
from partsum.node.masking import mask_update
from partsum.node.trainer import Job, Trained, train
from partsum.shared.config import PartsConfig, RunConfig, TrainingConfig, WireConfig, parse_config
from partsum.shared.encoded import used_encoding
from partsum.shared.errors import ConfigError, UpdateRefusedError, WireError
from partsum.shared.messages import Blob, Encoding, Update
from partsum.shared.secure import Masking
from partsum.shared.tensors import load_tensors, save_tensors

FULL: dict[str, Any] = {"planner": "full"}
RESIDUAL: dict[str, Any] = {"mode": "residual"}
BLOCK: dict[str, Any] = {}
ROUNDS = 3


def config_of(way: dict[str, Any], up: Encoding, down: Encoding = "float32") -> RunConfig:
    return RunConfig(
        seed=3,
        parts=PartsConfig(count=2, rounds=ROUNDS, local_epochs=1.0, **way),
        training=TrainingConfig(batch_size=8, learning_rate=3e-3),
        wire=WireConfig(up=up, down=down),
    )


@dataclass
class Node:
    """A node's hands and disk, for one part."""

    folder: Path
    starts: dict[str, Path] = field(default_factory=dict)  # by digest
    last: Trained | None = None
    fetched_bytes: int = 0

    def start(self, shop: Workshop, plan: RoundPlan, k: int) -> Path | None:
        """The start, built out of the last one or fetched."""
        start, delta = plan.parts[k].start, plan.parts[k].delta
        if start is None or start.digest in self.starts:
            return self.starts[start.digest] if start else None
        paths = shop.cutter.blob_paths(plan)
        out = self.folder / start.digest
        if delta is not None and delta.against.digest in self.starts:
            self.fetched_bytes += delta.blob.size_bytes
            old = self.starts[delta.against.digest]
            built = build_start(paths[delta.blob.digest], old, delta.against.digest, out)
            assert built == start.digest, "node and coordinator have the same bytes"
        else:
            self.fetched_bytes += start.size_bytes
            shutil.copy(paths[start.digest], out)
        self.starts[start.digest] = out
        return out

    def train(self, shop: Workshop, plan: RoundPlan, k: int) -> Trained:
        given, last = assignment(shop.config, plan, k), self.last
        job = Job(
            assignment=given,
            start=self.start(shop, plan, k),
            optimizer=last.optimizer if last and shop.block else None,
            cluster=torch.arange(k, 40, 2),
            samples=samples(),
            output=self.folder / f"update-{plan.round}",
            device=CPU,
            residual=last.residual if last else None,
        )
        done = encode_update(train(TASK, job, lambda progress: None, lambda: False), job)
        assert done.path is not None
        self.last, self.starts[done.update.blob.digest] = done, done.path
        return done


def take(shop: Workshop, plan: RoundPlan, done: Trained, k: int) -> Update:
    """As the coordinator takes an update in, once its bytes have come."""
    up = shop.config.wire.up
    check_claim(done.update, plan.parts[k], shop.largest_update(plan), up)
    came = shop.store.spool_path(f"push-{k}")
    shutil.copy(done.encoded or done.path or Path(), came)
    path, update = shop.decoder.decode(came, done.update, plan)
    change = shop.inspector.check(path, plan, k)
    path.replace(shop.update_path(plan.round, k))
    shop.store.take_update(f"node-{k}", update, 0.0, change)
    return update


def played(folder: Path, config: RunConfig, restarts: bool = False) -> tuple[list[str], list[Node]]:
    """A whole run: the bases' digests, and its nodes."""
    nodes = [Node(folder / f"node-{k}") for k in range(2)]
    for node in nodes:
        node.folder.mkdir(parents=True)
    digests = []
    store = Store(folder / "run")
    for round in range(ROUNDS):
        if restarts:
            store.close()
            store = Store(folder / "run")
        shop = workshop_of(config, store)
        plan = opened(shop, EQUAL, round)
        if restarts:
            for path in (store.folder / "spool").iterdir():
                path.unlink()
            shop.cutter.restore_starts(plan)
        for k, node in enumerate(nodes):
            take(shop, plan, node.train(shop, plan, k), k)
        digests.append(close_round(shop, plan).digest)
    store.close()
    return digests, nodes


def test_a_record_of_losses_that_a_power_cut_took_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Store(tmp_path / "run")) as store:
        shop = workshop_of(config_of(FULL, "int8"), store)
        plan = opened(shop, EQUAL, 0)
        found = []
        for name in ("torn", "none"):
            node = Node(tmp_path / name)
            node.folder.mkdir()
            last = node.train(shop, plan, 0)
            assert last.residual is not None
            last.residual.write_bytes(b"")
            node.last = last if name == "torn" else replace(last, residual=None)
            found.append(node.train(shop, plan, 0).update.blob)
        assert found[0] == found[1]
    assert ["begins without what" in text for text in caplog.messages] == [True]


def test_what_a_broken_stream_left_decoded_goes_with_the_next_one(tmp_path: Path) -> None:
    """A node may hang up while its update is decoded, again and again: that fills no disk."""
    with closing(Store(tmp_path / "run")) as store:
        shop = workshop_of(config_of(FULL, "int8"), store)
        plan = opened(shop, EQUAL, 0)
        for k in range(2):
            (tmp_path / str(k)).mkdir()
            done = Node(tmp_path / str(k)).train(shop, plan, k)
            assert done.encoded is not None
            for push in range(3):
                came = store.spool_path(f"push-r0-p{k}-abc-{push}")
                shutil.copy(done.encoded, came)
                path, _ = shop.decoder.decode(came, done.update, plan)
        left = sorted(store.spool_path("").glob("decoded-*"))
        assert [file.name.partition("push")[2] for file in left] == ["-r0-p0-abc-2", "-r0-p1-abc-2"]
        assert path in left


def base(folder: Path, version: int = ROUNDS) -> dict[str, Tensor]:
    return load_tensors(folder / "run" / "bases" / f"base-{version:05d}.safetensors")


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    return max(float((left[n].double() - right[n].double()).abs().max()) for n in left)


COMBINATIONS: list[tuple[dict[str, Any], Encoding, Encoding]] = [
    (FULL, "int8", "int8"),
    (FULL, "bfloat16", "bfloat16"),
    (FULL, "float32", "int8"),
    (RESIDUAL, "int8", "bfloat16"),
    (RESIDUAL, "float32", "bfloat16"),
    (BLOCK, "int8", "float32"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run in float32 of each way."""
    folders = {}
    for way in (FULL, RESIDUAL, BLOCK):
        folders[str(way)] = tmp_path_factory.mktemp("plain")
        played(folders[str(way)], config_of(way, "float32"))
    return folders


@pytest.mark.parametrize(("way", "up", "down"), COMBINATIONS)
def test_a_run_in_fewer_bytes_ends_near_one_in_float32_and_twice_the_same(
    tmp_path: Path, plain: dict[str, Path], way: dict[str, Any], up: Encoding, down: Encoding
) -> None:
    config = config_of(way, up, down)
    once, _ = played(tmp_path / "once", config)
    again, _ = played(tmp_path / "again", config, restarts=True)
    assert once == again, "a restart, and a lost spool, change nothing"
    exact = plain[str(way)]
    moved = distance(base(exact), base(exact, 0 if way else 1))
    assert 0 < distance(base(tmp_path / "once"), base(exact)) < 0.2 * moved


def test_float32_is_what_it_always_was(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with closing(Store(tmp_path / "run")) as store:
        shop, node = workshop_of(config_of(FULL, "float32"), store), Node(tmp_path / "node")
        plan = opened(shop, EQUAL, 0)
        done = node.train(shop, plan, 0)
        assert (done.update.encoded, done.encoded, done.residual) == (None, None, None)
        assert take(shop, plan, done, 0) == done.update
        assert plan.parts[0].start == blob_of(shop.store.base_path(plan.base))


def test_what_the_encoding_loses_is_added_to_the_next_change(tmp_path: Path) -> None:
    """All that was sent, and what is left, is all that was trained."""
    config = config_of(BLOCK, "int8")
    with closing(Store(tmp_path / "run")) as store:
        shop = workshop_of(config, store)
        node = Node(tmp_path)
        other = Node(tmp_path / "other")
        other.folder.mkdir()
        for round in range(2):
            plan = opened(shop, EQUAL, round)
            before = load_tensors(node.last.path) if node.last and node.last.path else {}
            owed = load_tensors(node.last.residual) if node.last and node.last.residual else {}
            trained = train_only(node, shop, plan)
            done = node.train(shop, plan, 0)
            assert done.path is not None
            assert done.residual is not None
            sent, left = load_tensors(done.path), load_tensors(done.residual)
            for name in left:
                start, debt = before.get(name, 0.0), owed.get(name, 0.0)
                wanted = trained[name] - start + debt
                torch.testing.assert_close(sent[name] - start + left[name], wanted)
                assert float(left[name].abs().max()) > 0
            expected = "int8" if round else "bfloat16"  # a fresh part has no start
            assert done.update.encoding == expected
            assert take(shop, plan, done, 0).blob == done.update.blob
            take(shop, plan, other.train(shop, plan, 1), 1)
            close_round(shop, plan)


def train_only(node: Node, shop: Workshop, plan: RoundPlan) -> dict[str, Tensor]:
    """What training makes of the part, before it is encoded."""
    plain = shop.config.model_copy(update={"wire": WireConfig()})
    job = Job(
        assignment=assignment(plain, plan, 0),
        start=node.start(shop, plan, 0),
        optimizer=node.last.optimizer if node.last else None,
        cluster=torch.arange(0, 40, 2),
        samples=samples(),
        output=node.folder / "plain",
        device=CPU,
    )
    done = train(TASK, job, lambda progress: None, lambda: False)
    assert done.path is not None
    return load_tensors(done.path)


def test_what_was_lost_of_another_part_is_left_out(tmp_path: Path) -> None:
    """Mode residual draws other units each round: the errors of the last are of other weights."""
    config = config_of(RESIDUAL, "int8")
    (tmp_path / "node").mkdir()
    with closing(Store(tmp_path / "run")) as store:
        shop, node = workshop_of(config, store), Node(tmp_path / "node")
        plan = opened(shop, EQUAL, 0)
        first = node.train(shop, plan, 0)
        node.last = replace(first, residual=None)
        without = node.train(shop, plan, 0)
        stranger = first.residual
        assert stranger is not None
        save_tensors(stranger, load_tensors(stranger), {"part": "another"}, durable=False)
        node.last = replace(first, residual=stranger)
        assert node.train(shop, plan, 0).update.blob == without.update.blob


def test_int8_down_sends_the_difference_once_a_node_has_a_start(tmp_path: Path) -> None:
    (first, second) = played(tmp_path, config_of(FULL, "int8", "int8"))[1]
    whole = (tmp_path / "run" / "bases" / "base-00000.safetensors").stat().st_size
    delta = (tmp_path / "run" / "bases" / "delta-00001.safetensors").stat().st_size
    assert first.fetched_bytes == second.fetched_bytes
    assert abs(first.fetched_bytes - (whole + (ROUNDS - 1) * delta)) < 100  # of headers
    start = load_tensors(tmp_path / "run" / "bases" / f"start-{ROUNDS:05d}.safetensors")
    exact = base(tmp_path)
    step = distance(exact, base(tmp_path, ROUNDS - 1)) / 127
    assert 0 < distance(start, exact) < 2 * step, "errors do not add up over rounds"


def test_the_base_loses_nothing_by_rounded_starts(tmp_path: Path) -> None:
    """Each change is added to the float32 base, not to what its node started from."""
    config = config_of(FULL, "float32", "bfloat16")
    (tmp_path / "node").mkdir()
    with closing(Store(tmp_path / "run")) as store:
        shop, node = workshop_of(config, store), Node(tmp_path / "node")
        plan = opened(shop, EQUAL, 0)
        done = node.train(shop, plan, 0)
        take(shop, plan, done, 0)
        assert done.path is not None
        sent, start = load_tensors(done.path), load_tensors(node.starts[done.update.start_digest])
        assert start["0.weight"].dtype == torch.bfloat16
        assert start["1.running_var"].dtype == torch.float32
        merged = load_tensors(shop.update_path(0, 0))
        exact = base(tmp_path, 0)["0.weight"]
        assert not torch.equal(start["0.weight"].float(), exact)
        change = sent["0.weight"] - start["0.weight"].float()
        torch.testing.assert_close(merged["0.weight"], exact + change)


def refused(shop: Workshop, plan: RoundPlan, done: Trained, said: str) -> None:
    with pytest.raises(UpdateRefusedError, match=said) as caught:
        take(shop, plan, done, 0)
    assert caught.value.kind == "encoding"
    assert not list(shop.store.spool_path("x").parent.glob("*decoded*"))


def test_an_update_that_is_not_what_it_says_is_refused(tmp_path: Path) -> None:
    config = config_of(FULL, "int8")
    (tmp_path / "node").mkdir()
    with closing(Store(tmp_path / "run")) as store:
        shop, node = workshop_of(config, store), Node(tmp_path / "node")
        plan = opened(shop, EQUAL, 0)
        done = node.train(shop, plan, 0)
        update, encoded = done.update, done.encoded
        assert encoded is not None
        elsewhere = replace(update, blob=Blob("0" * 32, update.blob.size_bytes))
        refused(shop, plan, replace(done, update=elsewhere), "it decodes to .* but 000")
        plain = replace(update, encoded=None, encoding="float32")
        refused(shop, plan, replace(done, update=plain), "travels as float32, but int8 was asked")
        other = replace(update, encoding="bfloat16")
        refused(shop, plan, replace(done, update=other), "travels as bfloat16, but int8 was asked")
        tensors = load_tensors(encoded)
        for against, said in (("1" * 32, "against is '111"), (update.start_digest, "is missing")):
            tensors.pop("6.weight", None)
            save_tensors(encoded, tensors, {"encoding": "int8", "against": against}, durable=False)
            refused(shop, plan, done, said)
        encoded.write_bytes(b"no tensors")
        refused(shop, plan, done, "not a safetensors file")


def test_a_start_is_not_built_out_of_another_one_than_was_meant(tmp_path: Path) -> None:
    played(tmp_path, config_of(FULL, "int8", "int8"))
    bases = tmp_path / "run" / "bases"
    change, old = bases / "delta-00002.safetensors", bases / "start-00001.safetensors"
    with pytest.raises(WireError, match="its against is"):
        build_start(change, old, "0" * 32, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('wire = { down = "int8" }\nparts = { mode = "residual" }', 'needs parts.planner = "full"'),
        ('wire = { down = "bfloat16" }', "nothing goes down"),
        ('wire = { up = "int8" }\nparts = { moments = "travel" }', 'moments = "travel"'),
        (
            'wire = { up = "int8" }\nparts = { planner = "full", aggregate = "gradients" }',
            'needs parts.aggregate = "weights"',
        ),
        ('wire = { up = "int8" }\nparts = { local_epochs = 0.0 }', "no change to send"),
        (
            'wire = { up = "int8" }\nparts = { planner = "full" }\n'
            "privacy = { secure_aggregation = true }",
            "secure_aggregation",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(more)


def test_a_deterministic_run_keeps_a_part_with_what_its_encoding_lost() -> None:
    assert needs_its_node(config_of(FULL, "int8"))
    assert not needs_its_node(config_of(FULL, "float32", "int8"))
    assert needs_its_node(config_of({"mode": "copies"}, "int8"))
    assert not needs_its_node(config_of(RESIDUAL, "int8")), "its units are others each round"


def test_a_fresh_part_is_sent_in_bfloat16_where_changes_are_int8() -> None:
    assert used_encoding("int8", fresh=True) == "bfloat16"
    assert used_encoding("int8", fresh=False) == "int8"
    assert used_encoding("float32", fresh=True) == "float32"


def test_a_masked_update_never_travels_in_its_encoded_form(tmp_path: Path) -> None:
    """A coordinator that asks for masks and an encoding must not get what the masks hide."""
    (tmp_path / "node").mkdir()
    with closing(Store(tmp_path / "run")) as store:
        shop, node = workshop_of(config_of(FULL, "int8"), store), Node(tmp_path / "node")
        done = node.train(shop, opened(shop, EQUAL, 0), 0)
        assert done.path is not None
        masking = Masking("ab" * 16, 0.5)
        masked = mask_update(done.update, done.path, masking, (), tmp_path / "masked")
        assert masked.sent == masked.blob == blob_of(tmp_path / "masked")
