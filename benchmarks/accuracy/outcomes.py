"""What came of one run of a method: accuracy, and what it cost in time, bytes and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.clones import Grown, Point, grow
from benchmarks.accuracy.methods import NODES, Choice, Config, Method, Workload
from benchmarks.harness import run, to_toml

from partsum.coordinator.summary import Summary
from partsum.shared.config import parse_config


@dataclass(frozen=True)
class Mark:
    """The whole model at one moment: after so much of a node's time and traffic."""

    time: float
    """In the unit of T: passes of the whole model that all nodes could have done together."""
    bytes: float
    """Sent and received by a node so far."""
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """One run of a method, from one seed."""

    seed: int
    accuracy: float
    loss: float
    start_accuracy: float | None
    """At the hand-off, where there is one."""
    time: float
    node_bytes: float
    round_bytes: float
    """A node's, in one round of the parts phase; 0 where there is none."""
    train_seconds: float
    """The parts phase's slowest node in each round, all nodes sharing this machine, and the
    hand-off's steps with their evaluations."""
    wall_seconds: float
    peak_memory_bytes: int
    curve: tuple[Mark, ...]


@dataclass(frozen=True)
class _Phase:
    """A phase's share of an outcome."""

    marks: list[Mark]
    seconds: float


def try_out(load: Workload, method: Method, choice: Choice, seed: int, folder: Path) -> Outcome:
    """Run a method, or read its run where it is in the folder already."""
    place = folder / load.name / method.name / choice.label() / f"seed-{seed}"
    config = method.configure(load, choice, seed)
    summary, run_folder = run(config, place, method.nodes)
    grown = _grown(load, choice, seed, summary, run_folder, place) if method.cloned else None
    return _outcome(load, choice, seed, config, summary, grown)


def _grown(
    load: Workload, choice: Choice, seed: int, summary: Summary, run_folder: Path, place: Path
) -> Grown:
    """The hand-off of a cloned slice, as a config of the whole model has it."""
    assert summary.checkpoint is not None
    tables = {
        "parts": load.rounds(choice, 1.0),
        # The slice's rate is for narrow matrices; whole ones take a quarter of it (muP).
        "training": {**load.training(choice), "learning_rate": choice.rate / NODES},
        "handoff": load.handoff(choice, (1 - choice.share) * load.budget),
    }
    config = parse_config(to_toml(load.config(seed, **tables)))
    return grow(run_folder / summary.checkpoint, config, choice.share, place / "grown")


def _outcome(
    load: Workload,
    choice: Choice,
    seed: int,
    config: Config,
    summary: Summary,
    grown: Grown | None,
) -> Outcome:
    points = grown.points if grown else _points(summary)
    start = points[0].accuracy if points else None
    epochs = config["parts"].get("local_epochs", 0.0)
    whole_parts = config["parts"].get("planner") == "full" and grown is None
    parts = _parts_phase(load, epochs, summary, whole_parts)
    end = parts.marks[-1] if parts.marks else Mark(0.0, 0.0, 0.0)
    handoff = _handoff_phase(load, choice.batch, points, end)
    marks = parts.marks + handoff.marks
    loss = points[-1].loss if points else summary.final_loss
    assert loss is not None
    rounds = len(summary.rounds)
    peaks = [phase.peak_memory_bytes or 0 for phase in summary.phases]
    return Outcome(
        seed=seed,
        accuracy=marks[-1].accuracy,
        loss=loss,
        start_accuracy=start if rounds else None,
        time=marks[-1].time,
        node_bytes=marks[-1].bytes,
        round_bytes=end.bytes / rounds if rounds else 0.0,
        train_seconds=parts.seconds + handoff.seconds,
        wall_seconds=summary.wall_seconds + (points[-1].seconds if grown else 0.0),
        peak_memory_bytes=max([*peaks, grown.peak_memory_bytes if grown else 0]),
        curve=tuple(marks),
    )


def _points(summary: Summary) -> tuple[Point, ...]:
    return tuple(
        Point(p.step, p.seconds, p.validation_loss, p.accuracy)
        for p in summary.handoff
        if p.validation_loss is not None and p.accuracy is not None
    )


def _parts_phase(load: Workload, epochs: float, summary: Summary, whole: bool) -> _Phase:
    """Rounds of so many local epochs each; bytes as measured, spread evenly over the rounds."""
    bytes_moved = sum(node.bytes_sent + node.bytes_received for node in summary.nodes)
    per_round = bytes_moved / NODES / max(1, len(summary.rounds))
    time = epochs / (1.0 if whole else load.part_speed)
    marks = [
        Mark(time * round.round, per_round * round.round, round.accuracy)
        for round in summary.rounds
        if round.accuracy is not None
    ]
    return _Phase(marks, sum(round.stage_seconds.train or 0.0 for round in summary.rounds))


def _handoff_phase(load: Workload, batch: int, points: Sequence[Point], start: Mark) -> _Phase:
    """Steps as of synchronous training over the nodes: a ring all-reduce of the gradients each."""
    if not points:
        return _Phase([], 0.0)
    whole, _, samples = load.costs
    step_bytes = 2 * (NODES - 1) / NODES * whole.state_bytes
    marks = [
        Mark(
            start.time + point.step * batch / samples,
            start.bytes + point.step * step_bytes,
            point.accuracy,
        )
        for point in points
    ]
    return _Phase(marks, points[-1].seconds - points[0].seconds)
