from __future__ import annotations

import torch

from partsum.coordinator.growth.widening import copy_map
from partsum.shared.part import Part
from partsum.shared.width import Slot, WidthGroup, Widths


def test_units_with_several_places_in_one_dimension_are_copied_in_each_and_the_rest_is_kept() -> (
    None
):
    # Two units of four: queries in blocks of two, keys in blocks of one, and a tail that none owns.
    queries, keys = Slot("qk", 0, 2, (0,), size=13), Slot("qk", 0, 1, (8,), size=13)
    widths = Widths((WidthGroup("heads", 4, "hidden", (queries, keys)),))
    source = copy_map(widths, Part({"heads": (0, 1)}))["qk"][0]
    narrow = torch.tensor([10, 11, 20, 21, 1, 2, 7])  # q0, q0, q1, q1, k0, k1, tail
    assert narrow[source].tolist() == [10, 11, 20, 21, 10, 11, 20, 21, 1, 2, 1, 2, 7]
