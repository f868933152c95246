"""A width group under construction: one walks along the axis and says what it runs through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from partsum.shared.width.groups import Count, Depth, Slot, WidthGroup, count_of, named_tensors
from partsum.shared.width.layers import output_dim


@dataclass
class Axis:
    """A width group under construction, in terms of the modules that it runs through."""

    model: nn.Module
    name: str
    units: int
    depth: Depth
    slots: list[Slot] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)

    def made_by(self, path: str, block: int = 1, offsets: tuple[int, ...] = (0,)) -> Axis:
        """The module's output is this axis: Linear and Conv rows, Embedding columns."""
        module = self.model.get_submodule(path)
        self.held_by(f"{path}.weight", output_dim(module), block, offsets)
        if getattr(module, "bias", None) is not None:
            self.held_by(f"{path}.bias", 0, block, offsets)
        return self

    def read_by(self, path: str, block: int = 1, offsets: tuple[int, ...] = (0,)) -> Axis:
        """The module's input is this axis: Linear and Conv columns."""
        module = self.model.get_submodule(path)
        return self.held_by(f"{path}.weight", 1 - output_dim(module), block, offsets)

    def normed_by(self, path: str, block: int = 1) -> Axis:
        """A normalisation over this axis; its running statistics are cut with it."""
        module = self.model.get_submodule(path)
        for name, tensor in named_tensors(module).items():
            if tensor.dim() == 1:
                self.held_by(f"{path}.{name}", 0, block)
        return self

    def held_by(
        self, tensor: str, dim: int, block: int = 1, offsets: tuple[int, ...] = (0,)
    ) -> Axis:
        """The named tensor's dimension is this axis, or has it at these offsets."""
        self.slots.append(Slot(tensor, dim, block, offsets))
        return self

    def counted_by(self, module: str, attribute: str, per_unit: int = 1) -> Axis:
        """The module's integer attribute counts this axis's units."""
        self.counts.append(Count(module, attribute, per_unit))
        return self

    def done(self) -> WidthGroup:
        """The finished group. What a slot's dimension holds beside its units is kept whole."""
        slots = tuple(self._sized())
        return WidthGroup(self.name, self.units, self.depth, slots, tuple(self.counts))

    def _sized(self) -> Iterator[Slot]:
        owned: dict[tuple[str, int], int] = {}
        for slot in self.slots:
            key = (slot.tensor, slot.dim)
            owned[key] = owned.get(key, 0) + self.units * slot.block * len(slot.offsets)
        for slot in self.slots:
            tensor = count_of(self.model, slot.tensor)
            shape = tensor.shape if isinstance(tensor, Tensor) else ()
            size = shape[slot.dim] if 0 <= slot.dim < len(shape) else 0
            partial = owned[slot.tensor, slot.dim] < size
            yield replace(slot, size=size) if partial else slot
