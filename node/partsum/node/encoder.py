"""An update in fewer bytes, and a start out of them; in the worker: it has torch.

What an encoding takes from a change is not lost: it is kept, and added to the next change of the
same part (error feedback: Seide et al. 2014; that it converges, Karimireddy 1901.09847). The update
is from then on what the coordinator will make of it, so that both sides have the same bytes.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from partsum.node.trainer import Job, Trained
from partsum.shared.encoded import Encoded, Read, file_shapes, restore, used_encoding, write_encoded
from partsum.shared.encoding import Shapes, is_encoded
from partsum.shared.errors import WireError
from partsum.shared.messages import Blob
from partsum.shared.moments import part_digest
from partsum.shared.tensors import TensorFile

log = logging.getLogger(__name__)


def encode_update(trained: Trained, job: Job) -> Trained:
    """The update as the job's settings want it to travel; once this returns, all is on disk.

    Its file is replaced by the one that the encoded file, which lies beside it, will be decoded to;
    what that differs by lies in ``residual``. Raises PartsumError where a value cannot be encoded.
    """
    a = job.assignment
    encoding = used_encoding(a.settings.encoding, fresh=a.start is None)
    if encoding == "float32" or trained.path is None:
        return trained
    path, against = trained.path, a.start.digest if a.start else ""
    encoded, residual, decoded = (
        path.with_name(f"{path.name}.{kind}") for kind in ("encoded", "residual", "decoded")
    )
    part = {"part": part_digest(a.part)}
    with ExitStack() as files:
        file = files.enter_context(TensorFile(path))
        start = files.enter_context(TensorFile(job.start)).read if job.start else None
        shapes = file_shapes(file)
        change = _change(file.read, start, _kept(job, shapes, files), shapes)
        digest = write_encoded(encoded, shapes, encoding, against, change, residual, part)
        sent = files.enter_context(Encoded(encoded, shapes, encoding, against))
        blob = Blob(restore(sent, start, decoded, part), decoded.stat().st_size)
    os.replace(decoded, path)
    update = replace(
        trained.update,
        blob=blob,
        encoded=Blob(digest, encoded.stat().st_size),
        encoding=encoding,
    )
    return replace(trained, update=update, encoded=encoded, residual=residual)


def _change(trained: Read, start: Read | None, kept: Read | None, shapes: Shapes) -> Read:
    """What is to be encoded of each matrix: its change, and what is left from the last time."""

    def read(name: str) -> Tensor:
        value = trained(name)
        if not is_encoded(*shapes[name]):
            return value
        if start is not None:
            value = value - start(name).float()
        return value if kept is None else value + kept(name)

    return read


def _kept(job: Job, shapes: Shapes, files: ExitStack) -> Read | None:
    """What the last encoding lost; None where that was of another part: its units are others."""
    if job.residual is None:
        return None
    try:
        file = files.enter_context(TensorFile(job.residual))
    except WireError as error:  # it is not synced: that would cost more than it is worth
        log.warning(
            "assignment %s begins without what earlier encodings of its part lost: %s",
            job.assignment.id,
            error,
        )
        return None
    matrices = {name: shape for name, shape in shapes.items() if is_encoded(*shape)}
    same = file.metadata.get("part") == part_digest(job.assignment.part)
    return file.read if same and file_shapes(file) == matrices else None


def build_start(change: Path, against: Path, digest: str, output: Path) -> str:
    """Write the start that an encoded change makes of an older one; returns its digest.

    ``digest`` is the older one's. Raises WireError where the two do not belong together.
    """
    with TensorFile(against) as old, Encoded(change, file_shapes(old), "int8", digest) as encoded:
        return restore(encoded, old.read, output)
