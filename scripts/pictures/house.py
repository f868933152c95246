"""The house: its rooms, and the one way in which data walks through them."""

from __future__ import annotations

from pictures.canvas import GROUND, HUES, INK, PALE, SOFT, Canvas

_ROOM_WIDTH, _ROOM_HEIGHT = 150, 46


def house() -> Canvas:
    """The four rooms and what is in them."""
    canvas = Canvas(960, 640, "The rooms of the house and the way of data through them")
    _wing(canvas, 20, 20, 590, 400, "coordinator/", 0, "plans, merges, evaluates, hands off")
    _wing(canvas, 700, 20, 240, 400, "node/", 1, "trains; one a device")
    _wing(
        canvas,
        20,
        450,
        920,
        90,
        "shared/",
        2,
        "the street that both face: nothing here knows either",
    )
    _wing(
        canvas, 20, 560, 920, 62, "protos/", 3, "what the two say to each other, and generated code"
    )
    _coordinator(canvas)
    _node(canvas)
    for k, name in enumerate(
        ("config", "task", "width", "part", "gates", "tensors", "wire", "transport")
    ):
        _room(canvas, 40 + 112 * k, 484, name, 100, 36)
    canvas.text(36, 610, "protos/partsum/protos/v1/partsum.proto", 13, mono=True)
    _wire(canvas)
    return canvas


def _wing(
    canvas: Canvas, x: float, y: float, width: float, height: float, name: str, hue: int, note: str
) -> None:
    canvas.box(x, y, width, height, PALE[hue], HUES[hue], 10)
    canvas.text(x + 16, y + 25, name, 16, HUES[hue], bold=True)
    canvas.text(x + 30 + 9.2 * len(name), y + 25, note, 12.5, SOFT)


def _room(
    canvas: Canvas, x: float, y: float, words: str, width: float = _ROOM_WIDTH,
    height: float = _ROOM_HEIGHT,
) -> None:  # fmt: skip
    canvas.box(x, y, width, height, GROUND, INK, 5)
    head, _, note = words.partition("\n")
    canvas.text(
        x + width / 2,
        y + (height / 2 + 5 if not note else 20),
        head,
        13,
        anchor="middle",
        bold=True,
    )
    canvas.text(x + width / 2, y + 36, note, 11, SOFT, "middle")


def _coordinator(canvas: Canvas) -> None:
    """Rooms on the way out along the top, on the way back along the bottom."""
    _room(canvas, 40, 66, "planner\nwhich parts there are")
    _room(canvas, 240, 66, "workshop\ncuts, evaluates")
    _room(canvas, 440, 66, "desk\ndeals with nodes")
    _room(canvas, 40, 180, "rounds\nevents in, actions out")
    _room(canvas, 240, 180, "daemon\ncarries them out")
    _room(canvas, 440, 180, "service, gate\nthe door: who, and what")
    _room(canvas, 40, 340, "handoff\nthe DeepSpeed job")
    _room(canvas, 240, 340, "store\njournal, files")
    _room(canvas, 440, 340, "inspector, cohort\nis this update good?")
    _room(canvas, 240, 262, "merge\nupdates to base")
    canvas.line(240, 196, 192, 196, INK, 1.5, arrow=True)
    canvas.text(216, 190, "events", 10.5, SOFT, "middle")
    canvas.line(190, 212, 238, 212, INK, 1.5, arrow=True)
    canvas.text(215, 226, "actions", 10.5, SOFT, "middle")
    canvas.line(190, 89, 238, 89, INK, 1.5, arrow=True)
    canvas.line(315, 180, 315, 114, INK, 1.5, arrow=True)
    canvas.line(390, 89, 438, 89, INK, 1.5, arrow=True)
    canvas.line(515, 112, 515, 178, INK, 1.5, arrow=True)
    canvas.line(515, 226, 515, 338, HUES[1], 1.8, arrow=True)
    canvas.text(522, 300, "update", 11.5, HUES[1])
    canvas.line(440, 363, 392, 363, HUES[1], 1.8, arrow=True)
    canvas.line(315, 340, 315, 310, HUES[1], 1.8, both=True)
    canvas.line(240, 363, 192, 363, HUES[1], 1.8, arrow=True)
    canvas.text(216, 356, "base", 10.5, SOFT, "middle")
    canvas.text(60, 320, "final.safetensors, report", 11, SOFT)


def _node(canvas: Canvas) -> None:
    _room(canvas, 745, 180, "loop, client\ndials out, retries")
    _room(canvas, 745, 66, "assignments\nblobs to update")
    _room(canvas, 745, 262, "worker\na process, has the device")
    _room(canvas, 745, 340, "trainer\none assignment")
    canvas.line(790, 180, 790, 114, INK, 1.5, arrow=True)
    canvas.line(850, 114, 850, 178, HUES[1], 1.8, arrow=True)
    canvas.path("M745,89 L722,89 L722,285 L742,285", INK, 1.5, arrow=True)
    canvas.line(820, 308, 820, 338, INK, 1.5, both=True)


def _wire(canvas: Canvas) -> None:
    canvas.line(590, 194, 742, 194, INK, 1.8, arrow=True)
    canvas.text(655, 186, "assignment", 11.5, INK, "middle")
    canvas.line(742, 212, 594, 212, HUES[1], 1.8, arrow=True)
    canvas.text(655, 228, "update", 11.5, HUES[1], "middle")
    canvas.text(655, 262, "gRPC, TLS;\nthe node dials", 11, SOFT, "middle")
    for x in (300, 820):
        canvas.line(x, 422, x, 448, SOFT, 1.5, arrow=True)
    canvas.text(316, 441, "imports", 11, SOFT)
    canvas.line(480, 542, 480, 558, SOFT, 1.5, arrow=True)
