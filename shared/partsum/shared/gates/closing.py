"""Closes gates of a module: branches that are off leave it, sums that are off are taken later."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from partsum.shared.gates.partial import PartialGate, split_layers
from partsum.shared.gates.silence import Pass, Silence
from partsum.shared.width import Gate, Widths


def close_gates(model: nn.Module, widths: Widths, off: Iterable[str]) -> nn.Module:
    """Close the named gates of a model, in place; it is returned. What stays keeps its names.

    ``widths`` is what `find_structure` says of the model.
    """
    off = set(off)
    close_branches(model, (gate for gate in widths.gates if gate.name in off))
    split_layers(model, widths, sorted_partial(off))
    return model


def close_branches(model: nn.Module, gates: Iterable[Gate]) -> None:
    """Put what costs nothing where the branches' modules are."""
    for gate in gates:
        for skip in gate.skips:
            parent, _, leaf = skip.path.rpartition(".")
            kind = Pass if skip.how == "pass" else Silence
            setattr(model.get_submodule(parent), leaf, kind(skip.outputs))


def sorted_partial(names: Iterable[str]) -> list[PartialGate]:
    """The partial-sum gates among these names."""
    found = (PartialGate.named(name) for name in sorted(names))
    return [gate for gate in found if gate is not None]
