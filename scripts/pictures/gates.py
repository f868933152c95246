"""Gates and the structures that they make."""

from __future__ import annotations

from pictures.canvas import FAINT, GROUND, HUES, INK, PALE, SOFT, Canvas


def gates() -> Canvas:
    """A residual gate, a partial-sum gate, and the structures of three gates."""
    canvas = Canvas(920, 330, "Gates: sums that are taken or left out; n of them, 2^n structures")
    _residual(canvas)
    _partial(canvas)
    _structures(canvas)
    return canvas


def _residual(canvas: Canvas) -> None:
    canvas.text(30, 32, "a residual gate", 16, bold=True)
    for row, on in enumerate((True, False)):
        y = 80 + 120 * row
        canvas.text(30, y - 20, "on: y = x + branch(x)" if on else "off: y = x", 13, SOFT)
        canvas.text(30, y + 35, "x", 15)
        canvas.line(45, y + 30, 226, y + 30, INK, 1.6, arrow=True)
        if on:
            canvas.path(f"M70,{y + 30} L70,{y} L100,{y}", arrow=True)
            canvas.box(104, y - 14, 84, 28, PALE[0], HUES[0])
            canvas.text(146, y + 5, "branch", 13, anchor="middle")
            canvas.path(f"M188,{y} L238,{y} L238,{y + 16}", arrow=True)
        else:
            canvas.box(104, y - 14, 84, 28, GROUND, FAINT, dashed=True)
            canvas.text(146, y + 5, "no weights", 12, SOFT, "middle")
        canvas.plus(238, y + 30, on)
        canvas.line(250, y + 30, 278, y + 30, INK, 1.6, arrow=True)
        canvas.text(284, y + 35, "y", 15)
    canvas.text(30, 292, "off saves parameters, bytes and FLOPs", 12.5, SOFT)


def _partial(canvas: Canvas) -> None:
    canvas.text(340, 32, "a partial-sum gate", 16, bold=True)
    for row, on in enumerate((True, False)):
        y = 84 + 120 * row
        said = "on: the sum, then the activation" if on else "off: an activation for each slice"
        canvas.text(340, y - 24, said, 13, SOFT)
        for k in range(2):
            canvas.box(340, y - 10 + 40 * k, 62, 26, PALE[k], HUES[k])
            canvas.text(371, y + 8 + 40 * k, f"W{k + 1} x{k + 1}", 12.5, anchor="middle")
        if on:
            canvas.path(f"M402,{y + 3} L436,{y + 16}", arrow=True)
            canvas.path(f"M402,{y + 43} L436,{y + 30}", arrow=True)
            canvas.plus(448, y + 23)
            canvas.line(460, y + 23, 484, y + 23, INK, 1.6, arrow=True)
            canvas.box(488, y + 9, 46, 28)
            canvas.text(511, y + 28, "act", 13, anchor="middle")
            canvas.line(534, y + 23, 566, y + 23, INK, 1.6, arrow=True)
        else:
            for k in range(2):
                canvas.line(402, y + 3 + 40 * k, 424, y + 3 + 40 * k, INK, 1.6, arrow=True)
                canvas.box(428, y - 11 + 40 * k, 46, 28)
                canvas.text(451, y + 8 + 40 * k, "act", 13, anchor="middle")
            canvas.path(f"M474,{y + 3} L516,{y + 16}", arrow=True)
            canvas.path(f"M474,{y + 43} L516,{y + 30}", arrow=True)
            canvas.plus(528, y + 23)
            canvas.line(540, y + 23, 566, y + 23, INK, 1.6, arrow=True)
    canvas.text(340, 292, "off saves nothing: the same weights", 12.5, SOFT)


def _structures(canvas: Canvas) -> None:
    canvas.text(650, 32, "3 gates, 8 structures", 16, bold=True)
    for number in range(8):
        x, y = 650 + 130 * (number % 2), 58 + 56 * (number // 2)
        bits = f"{7 - number:03b}"
        for k, bit in enumerate(bits):
            canvas.plus(x + 14 + 26 * k, y + 16, bit == "1", 10)
        canvas.text(x + 86, y + 21, bits, 13, mono=True)
    canvas.text(650, 292, "all share their weights; the search keeps\nthe best", 12.5, SOFT)
