"""Updates are looked at before they count: each one by itself, then all of a round together."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import torch

from partsum.coordinator.base import Base
from partsum.coordinator.cohort import Change, Outlier, outliers
from partsum.coordinator.contribution import Readable, Tensors
from partsum.coordinator.cutter import Cutter
from partsum.coordinator.origin import Origin
from partsum.coordinator.records import RoundPlan
from partsum.coordinator.store import Store
from partsum.coordinator.terms import moments_travel
from partsum.coordinator.updates import check_update, part_shapes
from partsum.shared.config import RunConfig
from partsum.shared.encoding import Shapes
from partsum.shared.part import Part
from partsum.shared.tensors import TensorFile

_LAST_ROUNDS = 3  # how far back a small round looks for updates to be compared with


class Inspector:
    """Looks at one run's updates, in worker threads."""

    def __init__(self, config: RunConfig, store: Store, base: Base, cutter: Cutter) -> None:
        self.config = config
        self.store = store
        self.base = base
        self.cutter = cutter
        self.first_round = 0  # earlier ones' updates are of another kind
        self._shapes: dict[tuple[Part, bool], Shapes] = {}
        self._seeding = threading.Lock()  # a fresh part is drawn from torch's only generator

    def check(self, path: Path, plan: RoundPlan, k: int) -> Change:
        """How far the file, an update of part ``k``, lies from its start; every byte is read once.

        Raises UpdateRefusedError where it is no update of that part.
        """
        shapes = self.shapes(plan, k)
        if self.config.privacy.secure_aggregation:
            masked = {name: (torch.int64, shape) for name, (_, shape) in shapes.items()}
            return check_update(path, masked)
        with ExitStack() as files:
            samples = plan.parts[k].num_samples
            return check_update(path, shapes, self.origin(plan, k, files), samples)

    def shapes(self, plan: RoundPlan, k: int) -> Shapes:
        """Of the tensors in an update of part ``k``."""
        known = self._shapes  # other threads may put another dict there
        key = (plan.parts[k].part, moments_travel(self.config, plan.round))
        shapes = known.get(key) or part_shapes(self.base.shape, self.base.widths, *key)
        self._shapes = {**dict(list(known.items())[-64:]), key: shapes}
        return shapes

    def origin(self, plan: RoundPlan, k: int, files: ExitStack) -> Readable:
        """What part ``k``'s change is measured from; its file stays open as long as ``files``.

        A part that starts fresh is drawn again from its seed, on the CPU, as its node draws it.
        """
        planned = plan.parts[k]
        if planned.start is None:
            with self._seeding:
                return Tensors(self.base.fresh_part(planned.part, planned.seed))
        start = files.enter_context(TensorFile(self.cutter.origin_paths(plan)[k]))
        gradients = self.config.parts.aggregate == "gradients"
        return Origin(start, self.base.trained if gradients else ())

    def outliers(self, plan: RoundPlan, missing: tuple[int, ...]) -> list[Outlier]:
        """The updates of a round that stand out so far that they are not to be merged.

        None in a search over structures, which differ and are not merged; none with secure
        aggregation, where nobody sees a change, and none with differential privacy: it bounds every
        update anyway, and which one is refused would tell of the others' data.
        """
        if self.config.privacy.noise_multiplier or self.config.parts.is_search:
            return []
        changes = self.store.changes(plan.round)
        rounds = range(max(self.first_round, plan.round - _LAST_ROUNDS), plan.round)
        before = [change.mean for r in rounds for change in self.store.changes(r).values()]
        present = {k: change for k, change in changes.items() if k not in missing}
        return outliers(present, before, self.config.merge.norm_bound)
