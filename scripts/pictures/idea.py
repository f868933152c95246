"""The idea, a part, the merge."""

from __future__ import annotations

from pictures.canvas import FAINT, GROUND, HUES, INK, PALE, SOFT, Canvas

_UNITS = 8


def _net(canvas: Canvas, left: float, top: float, apart: bool) -> None:
    """Two layers of units; all joined, or each only to those of its part."""
    across, down = 92, 20
    for i in range(_UNITS):
        for j in range(_UNITS):
            same = i // 2 == j // 2
            if apart and not same:
                continue
            hue = HUES[i // 2] if apart else FAINT
            y1, y2 = top + i * down, top + j * down
            canvas.line(left, y1, left + across, y2, hue, 1.6 if apart else 0.7)
    for i in range(_UNITS):
        for x in (left, left + across):
            canvas.dot(x, top + i * down, 6.5, HUES[i // 2] if apart else SOFT, GROUND)


def _matrix(canvas: Canvas, left: float, top: float, full: bool) -> None:
    """Four by four blocks: the parts on the diagonal, zero or trained beside it."""
    cell = 38
    for i in range(4):
        for j in range(4):
            x, y = left + j * cell, top + i * cell
            if i == j:
                canvas.box(x, y, cell - 2, cell - 2, HUES[i], HUES[i], 2)
            else:
                canvas.box(x, y, cell - 2, cell - 2, "#e8ebf0" if full else GROUND, FAINT, 2)
                if not full:
                    canvas.text(x + 18, y + 23, "0", 13, SOFT, "middle")


def idea() -> Canvas:
    """A wide network, its parts, the merge, the hand-off."""
    canvas = Canvas(920, 300, "A wide network falls apart into four parts, and is put together")
    heads = ("the base", "gates off: 4 parts", "merged", "handed off")
    notes = (
        "every unit reads every unit",
        "each is a small dense model;\nthey never need to talk",
        "parts on the diagonal, zeros\nbeside it: computes their mean",
        "DeepSpeed trains all of it;\nthe zeros become weights",
    )
    for k, (head, note) in enumerate(zip(heads, notes, strict=True)):
        x = 30 + 230 * k
        canvas.text(x, 34, head, 16, bold=True)
        canvas.text(x, 250, note, 12.5, SOFT)
        if k:
            canvas.line(x - 58, 135, x - 22, 135, INK, 1.6, arrow=True)
    _net(canvas, 40, 62, False)
    _net(canvas, 270, 62, True)
    _matrix(canvas, 490, 58, False)
    _matrix(canvas, 720, 58, True)
    return canvas


def part() -> Canvas:
    """What a part is: units of each width group, and gates."""
    canvas = Canvas(920, 300, "A part keeps some units of each width group, and some gates")
    canvas.text(30, 32, "the base, by width groups", 16, bold=True)
    names = ("stem", "block 0, hidden", "block 1, hidden", "heads of attention")
    for g, (name, units) in enumerate(zip(names, (8, 12, 12, 4), strict=True)):
        y = 62 + 46 * g
        canvas.text(30, y + 15, name, 13)
        step = 264 / units
        for u in range(units):
            k = u * 4 // units
            canvas.box(170 + u * step, y, step - 3, 22, HUES[k], HUES[k], 3)
    canvas.text(170, 258, "each box a unit: a neuron, a channel, a head", 12.5, SOFT)
    canvas.text(170, 276, "each colour the part that keeps it", 12.5, SOFT)
    canvas.line(452, 135, 540, 135, INK, 1.6, arrow=True)
    canvas.text(496, 124, "cut", 13, SOFT, "middle")
    canvas.text(496, 160, "merge", 13, SOFT, "middle")
    canvas.line(540, 146, 452, 146, INK, 1.6, arrow=True)
    canvas.text(570, 32, "part 1", 16, HUES[1], bold=True)
    for g, units in enumerate((2, 3, 3, 1)):
        y = 62 + 46 * g
        step = 264 / (8, 12, 12, 4)[g]
        for u in range(units):
            canvas.box(570 + u * step, y, step - 3, 22, HUES[1], HUES[1], 3)
    canvas.text(664, 77, "the same parameter names,", 13)
    canvas.text(664, 95, "a quarter as wide,", 13)
    canvas.text(664, 113, "about a sixteenth of the", 13)
    canvas.text(664, 131, "weights between layers", 13)
    canvas.plus(676, 168)
    canvas.text(696, 173, "gate on", 13)
    canvas.plus(676, 200, on=False)
    canvas.text(696, 205, "gate off: the branch is not there", 13, SOFT)
    canvas.text(
        570, 258, "part = the units kept in each group\n+ each gate, on or off", 13, bold=True
    )
    return canvas


def merge() -> Canvas:
    """Three ways in which parts cover the base, and what the merge does."""
    canvas = Canvas(920, 270, "How updates of parts become the next base")
    kinds = (
        ("mode block", "every axis cut, fixed slices", "zero where nobody trained"),
        (
            "mode residual",
            "hidden axes cut, the rest shared",
            "mean by samples; else the old value",
        ),
        ("full (federated averaging)", "every part is the whole base", "mean by samples"),
    )
    for k, (head, how, result) in enumerate(kinds):
        x = 30 + 300 * k
        canvas.text(x, 32, head, 16, bold=True)
        canvas.text(x, 52, how, 12.5, SOFT)
        for p in range(3):
            y = 72 + 30 * p
            canvas.text(x, y + 15, f"update {p}", 12, HUES[p])
            for u in range(6):
                held = {0: u // 2 == p, 1: u < 2 or 2 + p == u, 2: True}[k]
                fill = PALE[p] if held else GROUND
                canvas.box(x + 70 + u * 30, y, 28, 22, fill, HUES[p] if held else FAINT, 3)
        canvas.line(x + 160, 166, x + 160, 184, INK, 1.6, arrow=True)
        canvas.text(x, 207, "base r+1", 12, bold=True)
        for u in range(6):
            holders = {0: [u // 2], 1: [0, 1, 2] if u < 2 else [u - 2], 2: [0, 1, 2]}[k]
            holders = [p for p in holders if p < 3]
            for n, p in enumerate(holders):
                share = 28 / len(holders)
                canvas.box(x + 70 + u * 30 + n * share, 192, share, 22, HUES[p], HUES[p], 0)
            if not holders:
                canvas.box(x + 70 + u * 30, 192, 28, 22, "#e8ebf0", FAINT, 3)
        canvas.text(x, 244, result, 12.5, SOFT)
    return canvas
