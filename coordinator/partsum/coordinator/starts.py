"""What nodes fetch to start from, where that is not the base or a cut of it in float32.

    bfloat16   the start, its matrices rounded
    int8       start r = start r-1 + decode(int8(base r - start r-1))

In int8 a node that has the last start fetches only the difference. What its encoding loses is not
lost: the next difference is again against what nodes really have (as in EF21, 2106.05203). Every
start is a file of its own beside its base, so that a node without the one before can fetch it
whole, and so that it outlives a restart as the base does.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from partsum.shared.encoded import Encoded, file_shapes, restore, write_encoded
from partsum.shared.encoding import is_encoded
from partsum.shared.files import sync_file, sync_folder
from partsum.shared.messages import Blob
from partsum.shared.tensors import TensorFile


def write_rounded(start: Path, out: Path) -> Blob:
    """Write a start whose matrices are bfloat16."""
    with TensorFile(start) as file:
        digest = write_encoded(out, file_shapes(file), "bfloat16", "", file.read)
    return Blob(digest, out.stat().st_size)


class StartChain:
    """The starts of a run with `wire.down` = "int8", in the folder of its bases.

    Start 0 is base 0; each of the others is made, with its difference, when its base is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, version: int) -> Path:
        """Where the start of that round lies."""
        name = f"start-{version:05d}" if version else f"base-{version:05d}"
        return self._folder / f"{name}.safetensors"

    def delta_path(self, version: int) -> Path:
        """Where its difference to the one before lies; start 0 has none."""
        return self._folder / f"delta-{version:05d}.safetensors"

    def extend(self, base: Path, version: int, before: Blob) -> dict[str, str]:
        """Make the start of that round, and its difference to the one before.

        Returns their digests, as facts to be committed with the base.
        """
        delta, start = self.delta_path(version), self.path(version)
        with TensorFile(base) as new, TensorFile(self.path(version - 1)) as old:
            shapes = file_shapes(new)

            def change(name: str) -> Tensor:
                value = new.read(name)
                return value - old.read(name) if is_encoded(*shapes[name]) else value

            delta_digest = write_encoded(delta, shapes, "int8", before.digest, change)
            with Encoded(delta, shapes, "int8", before.digest) as encoded:
                start_digest = restore(encoded, old.read, start)
        for path in (delta, start):
            sync_file(path)
        sync_folder(self._folder)
        return {"start": start_digest, "delta": delta_digest}

    def files(self, version: int, facts: dict[str, str]) -> dict[Path, str]:
        """The files of that round that go on from its facts, and their digests."""
        if "start" not in facts:
            return {}
        return {self.path(version): facts["start"], self.delta_path(version): facts["delta"]}
