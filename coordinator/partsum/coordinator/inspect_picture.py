"""An inspection as a picture: a file of SVG that needs nothing beside it.

Every tensor is a bar, as long as the square root of its size. A bar has a lane for each of its
dimensions that are as long as a layer is wide: coloured by the group that cuts it, with what one
part keeps in full colour, or grey where all parts share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from partsum.coordinator.figures import bytes_text, count_text
from partsum.coordinator.inspection import CutView, Inspection, TensorView
from partsum.coordinator.planner.fractions import equal_fractions, split_units
from partsum.coordinator.report_svg import box, element, label

_NAMES, _BARS, _NOTES, _GROUPS, _LEAST = 366.0, 380.0, 705.0, 815.0, 1140.0
_LETTER = 6.1  # pixels, about
_TOP, _MANY = 74.0, 64  # with more tensors than this, those of one dimension are not drawn
_HUES = ("#3d6eae", "#d98b3a", "#4c9a72", "#b8576a", "#7d68ab", "#93843f", "#3f98a5", "#a76a95")
_STYLE = "\n".join(
    (
        "svg { background: #fbfaf8; }",
        "text { font: 11px system-ui, 'Segoe UI', Arial, sans-serif; fill: #5c646e; }",
        "text.title { font-size: 17px; font-weight: 600; fill: #1d2126; }",
        "text.name { fill: #1d2126; }",
        ".ground { fill: #fbfaf8; } .shared { fill: #c9ccd0; } .rest { opacity: .38; }",
        *(f".g{hue} {{ fill: {colour}; }}" for hue, colour in enumerate(_HUES)),
    )
)


def draw_inspection(seen: Inspection) -> str:
    """The picture, an SVG document."""
    shown = [tensor for tensor in seen.tensors if tensor.shape]
    fewer = len(shown) > _MANY
    if fewer:
        shown = [tensor for tensor in shown if len(tensor.shape) > 1]
    pitch = 20.0 if len(shown) <= _MANY else 13.0
    longest = max((tensor.numel for tensor in shown), default=1)
    hues = {group.name: place % len(_HUES) for place, group in enumerate(seen.groups)}
    height = _TOP + pitch * len(shown) + 12
    letters = max((len(_note(_lanes(tensor))) for tensor in shown), default=0)
    width = max(_LEAST, _GROUPS + _LETTER * letters + 16)
    title = f"{seen.task}: {seen.model}, {count_text(seen.parameters)} parameters"
    drawn = [
        element("title", "How a model is cut"),
        element("style", _STYLE),
        box(0, 0, width, height, "ground"),
        label(16, 28, title, "title"),
        label(16, 48, _caption(seen, fewer)),
    ]
    kept = {
        group.name: split_units(group.units, equal_fractions(seen.parts))[0] / group.units
        for group in seen.groups
        if group.units >= seen.parts
    }
    for row, tensor in enumerate(shown):
        y = _TOP + row * pitch
        length = max(4.0, math.sqrt(tensor.numel / longest) * (_NOTES - _BARS - 15))
        drawn += _row(tensor, y, pitch, length, hues, kept)
    return element(
        "svg",
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
    )


def _caption(seen: Inspection, fewer: bool) -> str:
    costs = [
        f"{count_text(depth.parameters)} ({bytes_text(depth.state_bytes)}) cut "
        + ("along hidden groups alone" if depth.depth == "hidden" else "along all")
        for depth in seen.depths
        if depth.parameters is not None
    ]
    said = [f"In full colour one of {seen.parts} parts: {' or '.join(costs)}"] if costs else []
    said += ["grey is shared", "lengths by the square root of the size"]
    return "; ".join(said + (["tensors of one dimension are not shown"] if fewer else [])) + "."


def _row(
    tensor: TensorView,
    y: float,
    pitch: float,
    length: float,
    hues: dict[str, int],
    kept: dict[str, float],
) -> list[str]:
    lanes = _lanes(tensor)
    thick = (pitch - 5) / len(lanes)
    baseline = y + pitch / 2 + 2
    drawn = [label(_NAMES, baseline, _shortened(tensor.name), "name", "end")]
    for place, cuts in enumerate(lanes):
        top = y + place * thick
        if not cuts:
            tip = f"{tensor.name}: shared. {tensor.reason}"
            drawn.append(box(_BARS, top, length, thick - 0.8, "shared", tip))
        for cut in cuts:
            drawn += _cut_lane(tensor, cut, top, thick - 0.8, length, hues, kept)
    shape = " x ".join(map(str, tensor.shape))
    drawn.append(label(_NOTES, baseline, shape))
    drawn.append(label(_GROUPS, baseline, _note(lanes)))
    return drawn


def _lanes(tensor: TensorView) -> list[list[CutView]]:
    """The cuts of each dimension that a layer's width could be: of a weight its first two."""
    last = max([1 if len(tensor.shape) > 1 else 0, *(cut.dim for cut in tensor.cuts)])
    return [[cut for cut in tensor.cuts if cut.dim == dim] for dim in range(last + 1)]


def _note(lanes: Sequence[Sequence[CutView]]) -> str:
    said = []
    for dim, cuts in enumerate(lanes):
        said += [f"dim {dim} {group}" for group in dict.fromkeys(cut.group for cut in cuts)]
    return ", ".join(said)


def _cut_lane(
    tensor: TensorView,
    cut: CutView,
    top: float,
    thick: float,
    length: float,
    hues: dict[str, int],
    kept: dict[str, float],
) -> list[str]:
    """What the first part keeps in full colour, the rest of the units' room faint."""
    size = tensor.shape[cut.dim]
    style = f"g{hues[cut.group]}"
    tip = f"{tensor.name}, dimension {cut.dim}: {cut.group}"
    drawn = []
    for offset in cut.offsets:
        first = _BARS + length * offset / size
        width = length * cut.span / size
        own = width * kept.get(cut.group, 1.0)
        drawn.append(box(first, top, own, thick, style, tip))
        if own < width:
            drawn.append(box(first + own, top, width - own, thick, f"{style} rest", tip))
    return drawn


def _shortened(name: str) -> str:
    return name if len(name) <= 56 else ".." + name[-54:]
