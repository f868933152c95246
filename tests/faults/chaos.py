"""Random kills, and the bytes of a run that nobody disturbed.

    python tests/faults/chaos.py [--minutes 10] [--kills 200] [--seed 7] [--folder DIR]

First a run is left alone. Then the same run is made again and again, while coordinator, nodes,
workers and the hand-off's job are killed with SIGKILL at random moments, several at once, twice in
quick succession, in whatever they are doing; what dies is started again. Each of these runs must
end with the same final weights, and have had the same base after every round, byte for byte.

It goes on until so many kills are done or the minutes are over. Every other run lets the moments
travel, and then a killed node may come back with an empty disk, or never. Exit code 1: a run ended
with other bytes, stalled, or a process ended by itself; its folder, with all logs, is kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a script

from tests.cluster import Cluster
from tests.faults.supervisor import KINDS, PHASES, Supervisor, Victim, free_port

CONFIG = """
name = "chaos"
seed = 3
keep_bases = 0
[task]
name = "partsum.shared.tasks:digits"
options = {{ widths = [32, 32] }}
[parts]
count = 2
rounds = {rounds}
local_epochs = {local_epochs}
moments = "{moments}"
{more}
[training]
learning_rate = 3e-3
batch_size = 32
[rounds]
heartbeat_seconds = 0.5
refusals = 1000  # workers die here for no fault of their nodes
{returning}
[handoff]
enabled = {handoff}
epochs = 4.0
checkpoint_every_steps = 15
evaluations = 1
restarts = 1000
[server]
port = {port}
metrics_port = 0
"""
RETURNING = {
    "local": "return_seconds = 600.0",  # only that node has the part's moments
    "travel": "return_seconds = 0.3\nmin_nodes = 1",
}
STALL_SECONDS = 180.0  # without a kill and without an end
_MEAN_SECONDS = 2.0  # between strikes that wait for nothing
_PATIENCE_SECONDS = 20.0  # for a strike that waits for a phase


@dataclass(frozen=True)
class Work:
    """What is trained in each run."""

    rounds: int = 6
    local_epochs: float = 40.0
    handoff: bool = True
    more: str = ""
    """Lines after those of [parts], as TOML."""

    def config(self, moments: str, port: int) -> str:
        """As TOML."""
        return CONFIG.format(
            rounds=self.rounds,
            local_epochs=self.local_epochs,
            handoff=str(self.handoff).lower(),
            moments=moments,
            more=self.more,
            returning=RETURNING[moments],
            port=port,
        )


@dataclass
class Chaos:
    """Disturbs runs of the same work; ``kills`` counts by kind and phase."""

    work: Work
    folder: Path
    rng: random.Random
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: int = 0

    def undisturbed(self) -> dict[str, bytes]:
        """The files that a calm run leaves, wherever the moments are kept."""
        return self._run("calm", "local", 0)

    def disturbed(self, moments: str, kills: int) -> dict[str, bytes]:
        """The files that a run leaves during which so many processes were killed."""
        self.runs += 1
        return self._run(f"run-{self.runs}-{moments}", moments, kills)

    def _run(self, name: str, moments: str, kills: int) -> dict[str, bytes]:
        folder = self.folder / name
        folder.mkdir(parents=True)
        port = free_port()
        (folder / "run.toml").write_text(self.work.config(moments, port))
        cluster = Cluster(folder, f"127.0.0.1:{port}")
        try:
            supervisor = Supervisor(cluster, self.rng, ("a", "b"))
            supervisor.begin()
            self._disturb(supervisor, moments, kills)
            return trail(supervisor.folder)
        finally:
            cluster.close()

    def _disturb(self, supervisor: Supervisor, moments: str, kills: int) -> None:
        strike = Strike(supervisor, self.rng)
        calm_since = time.monotonic()
        reserved = kills // 2 if self.work.handoff else 0  # else earlier phases would take them all
        while not supervisor.finished:
            supervisor.tend()
            if reserved and supervisor.phase() == "hand-off":
                reserved, strike = 0, Strike(supervisor, self.rng)
            if kills > reserved and strike.is_due():
                for victim in strike.victims()[: kills - reserved]:
                    phase = supervisor.phase()
                    if victim.kill():
                        kills -= 1
                        self.kills[victim.kind, phase] += 1
                        if moments == "travel" and victim.kind == "node":
                            self._fate(supervisor, victim.name)
                strike, calm_since = Strike(supervisor, self.rng), time.monotonic()
            waited = time.monotonic() - calm_since
            assert waited < STALL_SECONDS, f"no kill and no end in {waited:.0f} s"
            time.sleep(0.002)

    def _fate(self, supervisor: Supervisor, name: str) -> None:
        """What becomes of a killed node: it comes back as it was, or empty, or never."""
        fate = self.rng.choice(("as it was", "empty", "never", "another"))
        supervisor.cluster.processes[name].wait()
        if fate == "empty":
            supervisor.empty(name)
        elif fate == "another":
            supervisor.replace(name, f"{name[0]}{sum(self.kills.values())}")
        elif fate == "never" and len(supervisor.nodes) > 1:
            supervisor.replace(name, None)


class Strike:
    """The next blow: when it falls, and on whom.

    It waits for a phase that is still to come, drawn evenly, since some take milliseconds; or falls
    at any time.
    """

    def __init__(self, supervisor: Supervisor, rng: random.Random) -> None:
        self._supervisor = supervisor
        self._rng = rng
        self._phase = rng.choice([*self._ahead(), ""])
        self._at = time.monotonic() + rng.expovariate(1 / _MEAN_SECONDS)
        self._patience = time.monotonic() + _PATIENCE_SECONDS

    def _ahead(self) -> list[str]:
        """Phases that may be now or come yet; those of a round come again in each."""
        order = list(PHASES)
        here = order.index(self._supervisor.phase())
        return order[min(here, order.index("plan")) if here <= order.index("merge") else here :]

    def is_due(self) -> bool:
        """Whether it falls now."""
        now = time.monotonic()
        if self._phase and (self._supervisor.phase() == self._phase or now > self._patience):
            self._phase = ""
            self._at = now + self._rng.choice((0.0, self._rng.uniform(0, _MEAN_SECONDS)))
        return not self._phase and now >= self._at

    def victims(self) -> list[Victim]:
        """One mostly, of a kind drawn first; else several at once, or all there are."""
        alive = self._supervisor.victims()
        kinds = sorted({victim.kind for victim in alive})
        if not kinds:
            return []
        how = self._rng.random()
        if how < 0.1:
            return alive
        if how < 0.3:
            return self._rng.sample(alive, min(2, len(alive)))
        kind = self._rng.choice(kinds)
        return [self._rng.choice([victim for victim in alive if victim.kind == kind])]


def trail(folder: Path) -> dict[str, bytes]:
    """The weights that a run leaves: every base, and the final ones."""
    paths = sorted((folder / "bases").glob("base-*"))
    final = folder / "final.safetensors"
    return {path.name: path.read_bytes() for path in (*paths, *([final] * final.exists()))}


def differences(calm: dict[str, bytes], hurt: dict[str, bytes]) -> list[str]:
    """The files that are not the same, or missing on one side."""
    return [name for name in sorted({*calm, *hurt}) if calm.get(name) != hurt.get(name)]


def table(kills: Counter[tuple[str, str]]) -> Table:
    """Kills by kind of process and by what the run was doing."""
    made = Table(title=f"{sum(kills.values())} kills")
    for heading in ("", *PHASES, "all"):
        made.add_column(heading, justify="right")
    for kind in KINDS:
        row = [kills[kind, phase] for phase in PHASES]
        made.add_row(kind, *map(str, row), str(sum(row)))
    return made


def main() -> int:
    """Disturb runs until the kills or the minutes are over; returns the exit code."""
    options = _options()
    console = Console(width=110)
    console.print(f"seed {options.seed}, in {options.folder}")
    chaos = Chaos(Work(), options.folder, random.Random(options.seed))
    end = time.monotonic() + 60 * options.minutes
    calm = chaos.undisturbed()
    while (left := options.kills - sum(chaos.kills.values())) > 0 and time.monotonic() < end:
        moments = ("local", "travel")[chaos.runs % 2]
        begun = time.monotonic()
        try:
            hurt = chaos.disturbed(moments, min(left, chaos.rng.randint(4, 20)))
            wrong = ", ".join(differences(calm, hurt))
        except AssertionError as error:
            wrong = str(error)
        seconds, kills = time.monotonic() - begun, sum(chaos.kills.values())
        name = f"run-{chaos.runs}-{moments}"
        if wrong:
            console.print(table(chaos.kills))
            console.print(f"{name}, seed {options.seed}: {wrong}", markup=False)
            console.print(f"its folder is kept: {options.folder / name}", markup=False)
            return 1
        console.print(f"{name}: {kills} kills so far, the same bytes, {seconds:.0f} s")
        shutil.rmtree(options.folder / name)
    console.print(table(chaos.kills))
    console.print(f"seed {options.seed}: {chaos.runs} runs, all with the bytes of a calm one")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Random kills, and the bytes of a calm run.")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no run after (10)")
    parser.add_argument("--kills", type=int, default=200, help="how many in all (200)")
    parser.add_argument("--seed", type=int, default=None, help="of whom and when (drawn)")
    parser.add_argument("--folder", type=Path, default=None, help="for runs and logs (temporary)")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    options.folder = options.folder or Path(tempfile.mkdtemp(prefix="partsum-chaos-"))
    return options


if __name__ == "__main__":
    sys.exit(main())
