"""What the metrics page says of the run as a whole, gathered when it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from partsum.coordinator.cost import part_size
from partsum.coordinator.leaderboard import Leaderboard
from partsum.coordinator.registry import Node
from partsum.coordinator.standings import standings_of
from partsum.shared.part import WHOLE

if TYPE_CHECKING:
    from partsum.coordinator.run import Run


_INFO = ("partsum_run_info", "1; its labels say which run this is")
_INFO_LABELS = ["run", "task", "mode", "planner"]
_BASE = ("partsum_base_bytes", "Size of the base's weights")
_FULL = (
    "partsum_full_model_bytes",
    "Bytes that averaging the full model would have moved for the updates so far, both ways",
)
_DISK_FREE = ("partsum_disk_free_bytes", "Room on the disk of the run's folder")
_DISK_SIZE = ("partsum_disk_size_bytes", "Size of the disk of the run's folder")
_STEPS = ("partsum_handoff_steps_planned", "Steps that the hand-off will take; not before it")
_HANDOFF_MEMORY = (
    "partsum_handoff_memory_bytes",
    "Peak memory of the hand-off's rank 0: resident, or the GPU's; not before it",
)
_STRUCTURE = (
    ("partsum_structure_accuracy", "Headline metric of each of the search's best structures"),
    ("partsum_structure_loss", "Validation loss of each of the search's best structures"),
    ("partsum_structure_parameters", "Parameters of each of the search's best structures"),
    ("partsum_structure_flops", "FLOPs of training for a sample, of each of the best structures"),
    ("partsum_structure_sample_seconds", "Seconds of training for a sample, as a node measured"),
)


class RunFigures(Collector):
    """Which run it is, how large, how much room its disk has, and how its structures do.

    All of a search's structures would be thousands of series: only the first places are told.
    """

    def __init__(self, nodes: Iterable[Node], run: Run | None) -> None:
        self._nodes = nodes
        self._run = run
        self._base_bytes = 0
        if run is not None:
            self._base_bytes = part_size(run.base.shape, run.base.widths, WHOLE).state_bytes

    def describe(self) -> Iterator[Metric]:
        """The metrics without values."""
        yield GaugeMetricFamily(*_INFO, labels=_INFO_LABELS)
        yield GaugeMetricFamily(*_BASE)
        yield CounterMetricFamily(*_FULL)
        for words in (_DISK_FREE, _DISK_SIZE, _STEPS, _HANDOFF_MEMORY):
            yield GaugeMetricFamily(*words)
        for words in _STRUCTURE:
            yield GaugeMetricFamily(*words, labels=["structure"])

    def collect(self) -> Iterator[Metric]:
        """The metrics with their values; called in the page's own thread."""
        if (run := self._run) is None:
            return
        yield _info(run)
        yield GaugeMetricFamily(*_BASE, value=self._base_bytes)
        if not run.config.parts.is_study:  # a study averages nothing
            updates = sum(node.updates for node in list(self._nodes))
            yield CounterMetricFamily(*_FULL, value=2 * self._base_bytes * updates)
        yield from _disk(run.folder)
        if (progress := run.handoff_progress) is not None:
            yield GaugeMetricFamily(*_STEPS, value=progress.steps)
            yield GaugeMetricFamily(*_HANDOFF_MEMORY, value=progress.peak_memory_bytes)
        if run.board is not None:
            yield from structure_figures(run.board)


def _info(run: Run) -> Metric:
    config = run.config
    info = GaugeMetricFamily(*_INFO, labels=_INFO_LABELS)
    info.add_metric([run.folder.name, config.task.name, config.parts.mode, config.parts.planner], 1)
    return info


def _disk(folder: Path) -> Iterator[Metric]:
    try:
        disk = shutil.disk_usage(folder)
    except OSError:  # the folder is gone: the run says so itself
        return
    yield GaugeMetricFamily(*_DISK_FREE, value=disk.free)
    yield GaugeMetricFamily(*_DISK_SIZE, value=disk.total)


def structure_figures(board: Leaderboard) -> list[GaugeMetricFamily]:
    """How the first places do, and what they cost."""
    metrics = [GaugeMetricFamily(*words, labels=["structure"]) for words in _STRUCTURE]
    for one in standings_of(board):
        values = (one.accuracy, one.loss, one.parameters, one.flops, one.seconds_per_sample)
        for metric, value in zip(metrics, values, strict=True):
            metric.add_metric([one.structure], value)
    return metrics
