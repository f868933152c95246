"""A study's heavy work: what comes in is evaluated as the small model that it is, never merged.

That is done as it comes in, while nodes train others, and noted in the journal by the digest of its
file: neither a restart nor the end of the sweep has to wait for it.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from partsum.coordinator.base import Base
from partsum.coordinator.clock import Stages
from partsum.coordinator.cohort import Change
from partsum.coordinator.cost import Cost, part_cost
from partsum.coordinator.cutter import base_name
from partsum.coordinator.first_base import FirstBase
from partsum.coordinator.planner.sweep import Cell
from partsum.coordinator.records import RoundPlan, RoundResult, finite
from partsum.coordinator.store import Store
from partsum.coordinator.study.cutter import StudyCutter
from partsum.coordinator.study.results import Row, from_json, in_order, to_json
from partsum.coordinator.workshop import Workshop
from partsum.shared.config import RunConfig
from partsum.shared.errors import ConfigError, PartsumError, UpdateRefusedError, WireError
from partsum.shared.files import file_digest
from partsum.shared.messages import Update
from partsum.shared.part import WHOLE, Part
from partsum.shared.task import Samples
from partsum.shared.tensors import TensorFile, load_tensors, save_tensors

ROWS = "study"  # the fact in the journal
_WHOLE_CELL = Cell("tuned", None, 1.0, 1.0, 0)


class GivenBase(FirstBase):
    """Base 0 where the study names a file."""

    def _write_untrained(self, path: Path) -> None:
        given = self.config.study.base
        assert given is not None
        save_tensors(path, given_base(Path(given), self.base), {"partsum.base": "0"})


class StudyWorkshop(Workshop):
    """Works on one study's store."""

    _cutter = StudyCutter
    cutter: StudyCutter

    def __init__(
        self, config: RunConfig, store: Store, base: Base, train: Samples, validation: Samples
    ) -> None:
        super().__init__(config, store, base, train, validation)
        if config.study.base is not None:
            self.first_base = GivenBase(config, store, base, train, validation)
        self._costs: dict[tuple[int, ...], Cost] = {}
        self._judging = threading.Lock()  # one model at a time in memory

    def check_update(self, path: Path, plan: RoundPlan, part: int) -> Change:
        """How far it lies from its start, once it is evaluated. Raises UpdateRefusedError."""
        change = super().check_update(path, plan, part)
        try:
            self._scores(plan.parts[part].part, path)
            self._cut_accuracy(plan, part)
        except (PartsumError, OSError):
            raise
        except Exception as error:  # the task's code; without an answer the node would send again
            words = f"the model cannot be evaluated: {type(error).__name__}: {error}"
            raise UpdateRefusedError("not_evaluated", words) from error
        return change

    def merge_round(
        self, plan: RoundPlan, missing: tuple[int, ...], stages: Stages
    ) -> tuple[RoundResult, dict[str, object]]:
        """Evaluate what is in: the result, and the facts to commit with it; base 0 stays."""
        received = self.store.updates(plan.round)
        updates = {k: item.update for k, item in received.items() if k not in missing}
        with stages.timing("evaluate"):
            rows = self._rows(plan, updates)
        base = self.store.base_path(base_name(0))
        of_bases = [row for row in rows if row.start == "base"]
        result = RoundResult(
            base=base.name,
            digest=file_digest(base),
            loss=_mean([row.loss for row in of_bases]),
            accuracy=_mean([row.accuracy for row in of_bases]),
            missing=missing,
            stage_seconds={},
        )
        return result, {ROWS: to_json(rows)} | self._keep_parts(plan, updates)

    def _rows(self, plan: RoundPlan, updates: Mapping[int, Update]) -> list[Row]:
        """All of the study's rows so far."""
        before = from_json(self.store.fact(ROWS) or [])
        if self.cutter.is_base_round(plan.round):
            seeds = self.config.study.seeds
            cells = [replace(_WHOLE_CELL, seed=seed) for seed in seeds]
            return [self._row(plan, k, "base", cell, updates) for k, cell in enumerate(cells)]
        if self.config.study.base is not None:
            before = [self._given_row()]
        rows = [
            self._row(plan, k, cell.start, cell, updates)
            for k, cell in enumerate(self.cutter.cells)
        ]
        return in_order(before + rows)

    def _row(
        self, plan: RoundPlan, k: int, start: str, cell: Cell, updates: Mapping[int, Update]
    ) -> Row:
        """A model's row; its figures stay out where nobody could train it."""
        planned, cost = plan.parts[k], self._cost(plan.parts[k].part)
        row = Row(
            start=start,
            selection=cell.selection or "",
            keep=cell.keep,
            data=cell.data,
            seed=cell.seed,
            parameters=cost.parameters,
            flops=planned.num_samples * cost.flops_per_sample,
            samples=planned.num_samples,
            cut_accuracy=self._cut_accuracy(plan, k),
            loss=None,
            accuracy=None,
            model="",
            train_seconds=None,
        )
        if k not in updates:
            return row
        loss, accuracy = self._scores(planned.part, self.update_path(plan.round, k))
        model = self.store.part_path(plan.round, k).relative_to(self.store.folder)
        seconds = updates[k].train_seconds
        return replace(row, loss=loss, accuracy=accuracy, model=str(model), train_seconds=seconds)

    def _given_row(self) -> Row:
        path = self.store.base_path(base_name(0))
        loss, accuracy = self._scores(WHOLE, path)
        parameters, model = self._cost(WHOLE).parameters, str(path.relative_to(self.store.folder))
        seed = self.config.study.seeds[0]
        return Row("base", "", 1.0, 1.0, seed, parameters, 0, 0, None, loss, accuracy, model, None)

    def _cut_accuracy(self, plan: RoundPlan, k: int) -> float | None:
        path = self.cutter.origin_paths(plan).get(k)
        return None if path is None else self._scores(plan.parts[k].part, path)[1]

    def _scores(self, part: Part, path: Path) -> tuple[float | None, float | None]:
        """Loss and accuracy of a part's weights; evaluated once, however often they are asked."""
        with self._judging:
            key = f"scores/{file_digest(path)}"
            if (known := self.store.fact(key)) is None:
                with TensorFile(path) as file:
                    model = self.base.part_model(part, file)
                scores = self.base.scores(model, self.validation)
                known = [finite(scores.loss), finite(scores.accuracy)]
                self.store.note(**{key: known})
            return known[0], known[1]

    def _cost(self, part: Part) -> Cost:
        """Of parts that keep as many units of each group, once."""
        key = tuple(len(part.units.get(group.name, ())) for group in self.base.widths.groups)
        if key not in self._costs:
            batch = self.config.training.batch_size
            shape, widths, task = self.base.shape, self.base.widths, self.base.task
            self._costs[key] = part_cost(shape, widths, part, task, self.train, batch)
        return self._costs[key]


def given_base(path: Path, base: Base) -> dict[str, Tensor]:
    """The tensors of a base file. Raises ConfigError where they are not this model's."""
    wanted = base.shape.state_dict()
    try:
        found = load_tensors(path)
    except OSError as error:
        raise ConfigError(f"study.base: cannot read {path}: {error.strerror}") from error
    except WireError as error:  # it names its file
        raise ConfigError(f"study.base: {error}") from error
    if wrong := sorted(wanted.keys() ^ found.keys()):
        where = "the model" if wrong[0] in wanted else "the file"
        raise ConfigError(f"study.base: {path} does not fit: only {where} has {wrong[0]!r}")
    for name, tensor in wanted.items():
        if (found[name].shape, found[name].dtype) != (tensor.shape, tensor.dtype):
            raise ConfigError(
                f"study.base: {path} does not fit: {name!r} is {found[name].dtype} of shape "
                f"{tuple(found[name].shape)}, and the model's {tensor.dtype} of "
                f"{tuple(tensor.shape)}"
            )
    return found


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
