"""A round, the clusters, and a run's phases."""

from __future__ import annotations

from pictures.canvas import BAD, FAINT, GROUND, HUES, INK, PALE, SOFT, Canvas


def round_trip() -> Canvas:
    """One round in time, in which a node dies."""
    canvas = Canvas(920, 450, "A round: plan, assignments, training, updates, merge")
    lanes = {"coordinator": 200, "node one": 480, "node two": 740}
    for name, x in lanes.items():
        canvas.box(x - 70, 18, 140, 30, PALE[0] if name == "coordinator" else GROUND)
        canvas.text(x, 38, name, 14, anchor="middle", bold=True)
        canvas.line(x, 48, x, 264 if name == "node two" else 430, FAINT, 1.6)
    middle, one, two = lanes.values()
    steps = (
        (76, "plan", "which parts, why"),
        (340, "check, spool", "names, shapes, digest, norm"),
        (380, "merge", "tensor by tensor, fsync"),
        (420, "commit", "one transaction: base r+1"),
    )
    canvas.dot(middle, 186, 5, INK)
    for y, head, note in steps:
        canvas.text(20, y, head, 13, bold=True)
        canvas.text(20, y + 15, note, 11.5, SOFT)
        canvas.dot(middle, y - 4, 5, INK)
    _message(canvas, middle, one, 100, "assignment: part 0, cluster 0")
    _message(canvas, middle, two, 124, "assignment: part 1, cluster 1")
    _trains(canvas, one, 110, 170, 0, "trains part 0")
    _trains(canvas, two, 134, 250, 1, "trains part 1")
    _message(canvas, one, middle, 186, "update: the part's weights", HUES[0])
    canvas.line(two - 9, 246, two + 9, 266, BAD, 2.4)
    canvas.line(two - 9, 266, two + 9, 246, BAD, 2.4)
    canvas.text(two + 18, 262, "dies", 13, BAD, bold=True)
    canvas.text(two - 14, 262, "no heartbeat; it may come back", 11.5, SOFT, "end")
    _message(canvas, middle, one, 282, "part 1 to whoever is free")
    _trains(canvas, one, 292, 322, 1, "trains part 1")
    _message(canvas, one, middle, 336, "update", HUES[1])
    return canvas


def _message(
    canvas: Canvas, start: float, end: float, y: float, words: str, hue: str = INK
) -> None:
    canvas.line(start, y, end - (4 if end > start else -8), y, hue, 1.5, arrow=True)
    canvas.text(min(start, end) + 16, y - 6, words, 12, hue)


def _trains(canvas: Canvas, x: float, y1: float, y2: float, part: int, words: str) -> None:
    canvas.box(x - 8, y1, 16, y2 - y1, PALE[part], HUES[part], 3)
    canvas.text(x + 18, (y1 + y2) / 2 + 4, words, 12, HUES[part])


_DOTS = ((22, 20), (48, 34), (30, 52), (58, 14), (66, 48), (14, 40), (40, 8), (50, 62))


def clusters() -> Canvas:
    """Data in clusters, a cluster a node; then all of it."""
    canvas = Canvas(920, 290, "Each node trains on its cluster; the hand-off sees all data")
    canvas.text(30, 32, "the training data", 16, bold=True)
    corners = ((40, 60), (140, 50), (30, 160), (150, 165))
    for k, (x, y) in enumerate(corners):
        canvas.box(x - 8, y - 8, 94, 92, PALE[k], "none", 40)
        for dx, dy in _DOTS:
            canvas.dot(x + dx, y + dy, 4, HUES[k])
    canvas.text(30, 276, "by chance, label, k-means or a key of yours", 12.5, SOFT)
    canvas.line(262, 140, 330, 140, INK, 1.6, arrow=True)
    canvas.text(296, 130, "indices", 12, SOFT, "middle")
    canvas.text(350, 32, "parts phase", 16, bold=True)
    for k in range(4):
        y = 56 + 52 * k
        canvas.box(350, y, 190, 40, PALE[k], HUES[k])
        canvas.text(362, y + 25, f"node {k}: part {k}, cluster {k}", 13)
    canvas.text(350, 276, "samples stay where they are", 12.5, SOFT)
    canvas.line(556, 140, 624, 140, INK, 1.6, arrow=True)
    canvas.text(590, 130, "merge", 12, SOFT, "middle")
    canvas.text(650, 32, "hand-off", 16, bold=True)
    canvas.box(650, 56, 230, 196)
    canvas.text(662, 80, "the base, on all data, shuffled", 13)
    for k in range(4):
        for n, (dx, dy) in enumerate(_DOTS):
            x = 668 + (dx * 3 + 47 * k + 29 * n) % 196
            canvas.dot(x, 100 + (dy * 2 + 31 * k + 17 * n) % 138, 4, HUES[k])
    return canvas


def phases() -> Canvas:
    """A run from its first round to its report."""
    canvas = Canvas(920, 300, "Rounds of parts, the merge after each, then DeepSpeed")
    canvas.text(30, 32, "a run", 16, bold=True)
    for k in range(4):
        canvas.text(30, 74 + 34 * k, f"node {k}", 13, HUES[k])
        for r in range(4):
            canvas.box(96 + 98 * r, 58 + 34 * k, 84, 22, PALE[k], HUES[k], 3)
            canvas.text(138 + 98 * r, 74 + 34 * k, f"part {k}", 11.5, HUES[k], "middle")
    for r in range(4):
        x = 187 + 98 * r
        canvas.line(x, 50, x, 204, SOFT, 1.2, dashed=True)
        canvas.text(x, 222, f"base {r + 1}", 12, anchor="middle")
    canvas.text(292, 248, "merged, evaluated, committed", 12.5, SOFT, "middle")
    canvas.box(500, 58, 250, 124, "#e8ebf0", INK)
    for k in range(4):
        canvas.box(512 + 16 * k, 72 + 16 * k, 15, 15, HUES[k], HUES[k], 1)
    canvas.box(511, 71, 66, 66, "none", SOFT, 2)
    canvas.text(592, 98, "DeepSpeed", 15, bold=True)
    canvas.text(592, 118, "the whole base", 13)
    canvas.text(592, 136, "on all data, ZeRO,", 13)
    canvas.text(592, 154, "optimizer offloaded", 13)
    canvas.text(625, 222, "its checkpoints", 12, anchor="middle")
    canvas.text(625, 248, "resumed from after a crash", 12.5, SOFT, "middle")
    canvas.line(750, 120, 786, 120, INK, 1.6, arrow=True)
    for k, name in enumerate(("final.safetensors", "report.html", "summary.json")):
        canvas.text(794, 96 + 26 * k, name, 11, mono=True)
    canvas.line(30, 272, 890, 272, INK, 1.4, arrow=True)
    canvas.text(30, 290, "parts phase", 12, SOFT)
    canvas.text(500, 290, "hand-off", 12, SOFT)
    canvas.text(890, 290, "time", 12, SOFT, "end")
    return canvas
