"""Lanes: width axes of a convolutional net while they are being followed through its layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from partsum.shared.width.groups import Count, Depth, Slot, WidthGroup


@dataclass(frozen=True)
class Span:
    """A tensor's dimension that lies on a lane: ``size`` indices, unit after unit."""

    tensor: str
    dim: int
    size: int


@dataclass(eq=False)
class Lane:
    """All that turned out to be one axis so far. Lanes whose values are added become one.

    It has the name, and the ``number`` in the order of the computation, of its first layer.
    ``units`` is the largest number that every span, and every module that counts along the lane, is
    a multiple of; 0 while nothing is known. A lane with ``reasons`` is not cut.
    """

    name: str
    number: int
    units: int = 0
    spans: list[Span] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    is_stream: bool = False
    is_input: bool = False
    is_output: bool = False
    _joined: Lane | None = None

    @property
    def root(self) -> Lane:
        """The lane that this one has become part of."""
        lane = self
        while lane._joined is not None:
            lane = lane._joined
        return lane

    @property
    def is_cut(self) -> bool:
        """Whether it can be a width group: more than one unit, all that holds it known."""
        fixed = self.is_input or self.is_output or bool(self.reasons)
        return not fixed and self.units > 1 and bool(self.spans)

    def hold(self, tensor: str, dim: int, size: int) -> None:
        """Let the tensor's dimension be on this lane. Again makes no difference."""
        root, span = self.root, Span(tensor, dim, size)
        if span not in root.spans:
            root.spans.append(span)
        root.allow(size)

    def allow(self, units: int) -> None:
        """Let the units be no finer than a ``units``-th of the lane."""
        self.root.units = math.gcd(self.root.units, units)

    def count(self, module: str, attribute: str, value: int) -> None:
        """Let the module's integer attribute, now ``value``, follow the units."""
        self.root.counts[module, attribute] = value
        self.allow(value)

    def keep_whole(self, reason: str) -> None:
        """Do not cut this lane."""
        if reason not in self.root.reasons:
            self.root.reasons.append(reason)

    def join(self, other: Lane) -> None:
        """Become one with another lane, of as many units."""
        if self.root is other.root:
            return
        first, second = sorted((self.root, other.root), key=lambda lane: lane.number)
        second._joined = first
        first.units = math.gcd(first.units, second.units)
        first.spans += [span for span in second.spans if span not in first.spans]
        first.counts |= second.counts
        first.reasons += [reason for reason in second.reasons if reason not in first.reasons]
        first.is_stream |= second.is_stream
        first.is_input |= second.is_input
        first.is_output |= second.is_output

    def group(self, depth: Depth) -> WidthGroup:
        """The width group that the lane has become."""
        slots = (Slot(s.tensor, s.dim, s.size // self.units) for s in self.spans)
        counts = (
            Count(module, attribute, value // self.units)
            for (module, attribute), value in self.counts.items()
        )
        return WidthGroup(self.name, self.units, depth, tuple(slots), tuple(counts))

    @property
    def reason(self) -> str:
        """Why it is not cut."""
        if self.reasons:
            return self.reasons[0]
        if self.is_output:
            return "it is the model's output"
        return "it is what the model is given" if self.is_input else "it has a single unit"


@dataclass(frozen=True)
class Flow:
    """A value on its way through the model: which lane its channels are.

    Channels are dimension 1. ``size`` says how many there are, None where that is not known: after
    a map is flattened, and of what the model is given. ``rank`` is 2 for (n, channels), more for
    maps, None where it is not known.
    """

    lane: Lane
    size: int | None
    rank: int | None


@dataclass(frozen=True)
class Weight:
    """A Linear's or convolution's weight, which adds up one lane and makes another.

    ``is_normed`` says that nothing but norms reads what it makes.
    """

    module: str
    read: Lane
    made: Lane
    is_normed: bool


def distinct(lanes: Iterable[Lane], keep: Callable[[Lane], bool]) -> list[Lane]:
    """The lanes that they have become, each once, in order of first appearance."""
    return [lane for lane in dict.fromkeys(lane.root for lane in lanes) if keep(lane)]
