"""What came from a node becomes the update that is merged: its change, added to the start.

The start is the coordinator's own, in float32. Where nodes start from a rounded one, that was
what they measured their change from, and the base loses nothing by the rounding.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from partsum.coordinator.cutter import Cutter
from partsum.coordinator.inspector import Inspector
from partsum.coordinator.records import RoundPlan
from partsum.shared import limits
from partsum.shared.config import RunConfig
from partsum.shared.encoded import Changes, Encoded, check_forms, restore
from partsum.shared.encoding import Shapes, is_encoded
from partsum.shared.errors import UpdateRefusedError, WireError
from partsum.shared.messages import Blob, Update
from partsum.shared.moments import part_digest
from partsum.shared.tensors import TensorFile, header_bytes


class Decoder:
    """Works on one run's spool, in worker threads."""

    def __init__(self, config: RunConfig, cutter: Cutter, inspector: Inspector) -> None:
        self._cutter = cutter
        self._inspector = inspector
        self._whole = config.wire.up == config.wire.down == "float32"
        self._same_start = config.wire.down == "float32"
        self._numbers = itertools.count()  # two pushes of one update may be decoded at once

    def decode(self, path: Path, update: Update, plan: RoundPlan) -> tuple[Path, Update]:
        """Where the update lies in float32, and the update as it is then.

        What came in ``path`` is gone once this returns. Where node and coordinator start from the
        same weights, what comes out must be what the node announced: it may go on from there.

        Raises UpdateRefusedError where it cannot be decoded, or comes out different.
        """
        if self._whole:
            return path, update
        # Where a stream broke off while its update was decoded, nobody took what came out.
        for left in path.parent.glob(f"decoded-*-{path.name.rpartition('-')[0]}-*"):
            left.unlink(missing_ok=True)
        out = path.with_name(f"decoded-{next(self._numbers)}-{path.name}")
        try:
            digest = self._restore(path, update, plan, out)
        except WireError as error:
            raise UpdateRefusedError("encoding", limits.in_words(str(error))) from error
        blob = Blob(digest, out.stat().st_size)
        if self._same_start and blob != update.blob:
            out.unlink()
            raise UpdateRefusedError(
                "encoding",
                f"it decodes to {blob.digest}, but {update.blob.digest} was announced: this node "
                "reckons otherwise than the coordinator, or had another start",
            )
        path.unlink(missing_ok=True)
        return out, replace(update, blob=blob)

    def _restore(self, path: Path, update: Update, plan: RoundPlan, out: Path) -> str:
        planned = plan.parts[update.part_index]
        shapes = self._inspector.shapes(plan, update.part_index)
        with ExitStack() as files:
            sent: Changes
            if update.encoded is not None:
                against = update.start_digest
                sent = files.enter_context(Encoded(path, shapes, update.encoding, against))
            else:
                file = files.enter_context(TensorFile(path, header_bytes(shapes)))
                start = self._cutter.blob_paths(plan)[update.start_digest]
                sent = _Moved(file, files.enter_context(TensorFile(start)), shapes)
            origin = None
            if planned.start is not None:
                own = self._cutter.origin_paths(plan)[update.part_index]
                origin = files.enter_context(TensorFile(own)).read
            return restore(sent, origin, out, {"part": part_digest(planned.part)})


class _Moved:
    """A whole update, read as its change since the start that its node had.

    Raises WireError where it does not hold tensors of these shapes.
    """

    def __init__(self, update: TensorFile, start: TensorFile, shapes: Shapes) -> None:
        check_forms(update, shapes)
        self.shapes = shapes
        self._update = update
        self._start = start

    def read(self, name: str) -> Tensor:
        """The change of a matrix; any other tensor as it is."""
        value = self._update.read(name)
        matrix = is_encoded(*self.shapes[name])
        return value - self._start.read(name).float() if matrix else value
