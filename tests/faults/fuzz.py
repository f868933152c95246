"""Wild messages at every door, and the honest node that must not notice.

    python tests/faults/fuzz.py [--messages 100000] [--seed 1] [--folder DIR]

A real coordinator, in a process of its own, is sent bytes that are no messages, messages whose
fields are anything, and valid conversations with changes and out of order: every method of both
services. Between two batches an honest node, which is connected all the time, must get through its
round. Then a real node is told wild things, and must finish an honest run afterwards; and every
decoder is fed in this process.

Exit code 1: a process ended or was more than 300 MB above idle, a log holds a traceback, or the
honest one did not get through. Its folder, with all logs, is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

import grpc.aio
import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script

from tests.cluster import Cluster
from tests.faults.callers import Caller
from tests.faults.decoders import feed_decoders
from tests.faults.wild import Wild
from tests.faults.wild_coordinator import tell_node
from tests.hand_node import HandNode

from partsum.protos.v1 import partsum_pb2 as pb
from partsum.protos.v1 import partsum_pb2_grpc as rpc

RSS_LIMIT_BYTES = 300 << 20
BATCH = 2000  # messages, between two rounds of the honest node
CALLERS = 32  # at the same time
# gRPC prints this by itself where a caller hangs up before it is told of its error.
GRPC_HUNG_UP = re.compile(
    r"^Traceback.*\n(  File \"src/python/grpcio.*\n)+grpc.*ExecuteBatchError.*\n", re.MULTILINE
)
CONFIG = """
name = "fuzz"
deterministic = false
task = {{ name = "partsum.shared.tasks:digits", options = {{ widths = [12, 12] }} }}
parts = {{ count = 4, rounds = {rounds}, local_epochs = 0.1, evaluate_every = 0 }}
rounds = {{ heartbeat_seconds = 60.0, return_seconds = 0.0, min_nodes = 1, refusals = 20 }}
handoff = {{ enabled = false }}
server = {{ port = 0, metrics_port = 0, calls_per_second = 1e9 }}
"""


class Watched:
    """A process under watch: its memory is looked at five times a second. Use as a context."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.idle_bytes = self.peak_bytes = self._process.memory_info().rss
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watched:
        self._watch = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._watch is not None
        self._watch.cancel()

    async def _look(self) -> None:
        while self._process.is_running():
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
            await asyncio.sleep(0.2)

    def check(self, log: str) -> None:
        """Alive, not grown too far, and nothing in its log that should not be."""
        assert self._process.is_running(), log[-3000:]
        assert self._process.status() != psutil.STATUS_ZOMBIE, log[-3000:]
        grown = self.peak_bytes - self.idle_bytes
        assert grown < RSS_LIMIT_BYTES, f"{grown >> 20} MiB above idle"
        said = GRPC_HUNG_UP.sub("", log).replace("Unexpected [DecodeError]", "")
        for word in ("Traceback", "an error inside partsum", "never retrieved", "Unexpected ["):
            assert word not in said, said[max(0, said.index(word) - 2000) :][:9000]


async def fuzz_coordinator(
    cluster: Cluster, rng: random.Random, messages: int, sent: Counter[str]
) -> Watched:
    """Send so many messages; returns what was seen of the coordinator's memory."""
    batches = max(1, round(messages / BATCH))
    (cluster.folder / "run.toml").write_text(CONFIG.format(rounds=batches + 1))
    cluster.coordinator()
    async with (
        grpc.aio.insecure_channel(cluster.address) as channel,
        Watched(cluster.processes["coordinator"].pid) as watched,
    ):
        honest = HandNode(rpc.CoordinatorServiceStub(channel), cluster.folder, "honest")
        honest.hello()
        await honest.heard("welcome")
        honest.ready()
        assignment = await next_assignment(honest)
        for batch in range(batches):
            honest.outbox.put_nowait(pb.ControlRequest(heartbeat=pb.Heartbeat()))
            await one_batch(cluster, rng, (batch + 1) * messages // batches, sent)
            assert assignment is not None
            assignment = await one_round(honest, assignment)
            watched.check(cluster.log("coordinator"))
        assert assignment is not None
        assert await one_round(honest, assignment) is None
        assert cluster.wait("coordinator") == 0, cluster.log("coordinator")
        assert cluster.summary()["state"] == "finished"
    return watched


async def one_batch(
    cluster: Cluster, rng: random.Random, messages: int, sent: Counter[str]
) -> None:
    """Until so many messages are sent in all, by several callers at the same time."""

    async def call_on(caller: Caller) -> None:
        while sent.total() < messages:
            await caller.call()

    async with grpc.aio.insecure_channel(cluster.address) as channel:
        callers = [
            Caller(channel, f"fuzz-{k}", Wild(random.Random(rng.random())), sent, cluster.folder)
            for k in range(CALLERS)
        ]
        await asyncio.gather(*(call_on(caller) for caller in callers))


async def one_round(honest: HandNode, assignment: pb.Assignment) -> pb.Assignment | None:
    """Deliver what is assigned until the round has changed; the next round's, or None at the end.

    A fuzzed node may have had the part too, and been faster with a right update.
    """
    given: pb.Assignment | None = assignment
    while given is not None and given.round == assignment.round:
        start = given.start.digest
        answer = await honest.deliver(given, honest.tensors(given), start_digest=start)
        late = "already in" in answer.reason or "is not open" in answer.reason
        assert answer.accepted or late, answer.reason
        given = await next_assignment(honest)
    return given


async def next_assignment(honest: HandNode) -> pb.Assignment | None:
    """The next one, past what is cancelled because a fuzzed node was faster; None at the end."""
    while True:
        message = await asyncio.wait_for(anext(honest.answers), 60)
        match message.WhichOneof("kind"):
            case "assignment":
                assignment: pb.Assignment = message.assignment
                return assignment
            case "finished":
                return None
            case kind:
                assert kind == "cancel", message


def main() -> int:
    """Fuzz everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    flags = parser.parse_args()
    folder = flags.folder or Path(tempfile.mkdtemp(prefix="partsum-fuzz-"))
    console = Console()
    console.print(f"seed {flags.seed}, in {folder}")
    seconds = fuzz_all(folder, flags.seed, flags.messages, console)
    console.print(f"{seconds:.0f} s; nothing was found")
    if flags.folder is None:
        shutil.rmtree(folder)
    return 0


def fuzz_all(folder: Path, seed: int, messages: int, console: Console) -> float:
    """To the decoders as many again, to the node a few; returns the seconds."""
    begun = time.monotonic()
    rng = random.Random(seed)
    table = Table("what", "messages")
    sent: Counter[str] = Counter()
    told: Counter[str] = Counter()
    cluster = Cluster(folder)
    try:
        watched = asyncio.run(fuzz_coordinator(cluster, rng, messages, sent))
        node = asyncio.run(tell_node(cluster, rng, messages // 200, told))
    finally:
        cluster.close()
    fed = feed_decoders(folder, rng, messages)
    for what, count in sorted((sent + told + fed).items()):
        table.add_row(what, str(count))
    console.print(table)
    console.print(
        f"coordinator: {watched.idle_bytes >> 20} MiB idle, {watched.peak_bytes >> 20} MiB peak; "
        f"node: {node}"
    )
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
