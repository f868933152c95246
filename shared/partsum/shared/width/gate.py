"""What a gate is: a ``+`` of a model that is taken or left out (see `partsum.shared.gates`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Skip:
    """A module that a part without the branch does not have, and what stands in its place.

    ``silence`` makes zeros of the shape of what it reads, ``pass`` hands on what it reads. A module
    that returns a tuple has ``outputs`` in it: the zeros, and None for the rest.
    """

    path: str
    how: Literal["silence", "pass"]
    outputs: int = 1


@dataclass(frozen=True)
class Gate:
    """The ``+`` that adds a residual branch to the stream; off, the branch is not there at all.

    ``skips`` are the branch's modules in the order in which it runs through them, and ``tensors``
    all that these hold, by name.
    """

    name: str
    skips: tuple[Skip, ...]
    tensors: tuple[str, ...]
