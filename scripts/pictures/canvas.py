"""A picture as SVG: boxes, words and arrows, on a ground of its own so that it reads anywhere."""

from __future__ import annotations

from html import escape

INK, SOFT, FAINT, GROUND = "#22262e", "#66707f", "#c9ced6", "#ffffff"
HUES = ("#3b6fb6", "#c2571a", "#2f8f5b", "#a23b72")  # parts 0 to 3
PALE = ("#dbe6f5", "#f8e1d2", "#d8eee1", "#f1dbe6")
BAD = "#c0392b"

_HEAD = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker></defs>'
)


class Canvas:
    """Collects what is drawn; sizes are pixels, ``y`` grows downwards."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._drawn: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = GROUND,
        edge: str = INK, round: float = 6, dashed: bool = False, thick: float = 1.2,
    ) -> None:  # fmt: skip
        """A rectangle, its upper left corner at (x, y)."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._drawn.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round:g}" '
            f'fill="{fill}" stroke="{edge}" stroke-width="{thick:g}"{dash}/>'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, edge: str = "none") -> None:
        """A filled circle."""
        self._drawn.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{edge}"/>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, hue: str = INK,
        thick: float = 1.4, dashed: bool = False, arrow: bool = False, both: bool = False,
    ) -> None:  # fmt: skip
        """A straight line, with tips where asked."""
        more = ' stroke-dasharray="4 4"' if dashed else ""
        more += ' marker-end="url(#tip)"' if arrow or both else ""
        more += ' marker-start="url(#tip)"' if both else ""
        self._drawn.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{hue}" '
            f'stroke-width="{thick:g}"{more}/>'
        )

    def path(self, shape: str, hue: str = INK, thick: float = 1.4, arrow: bool = False) -> None:
        """A curve in SVG's own words."""
        tip = ' marker-end="url(#tip)"' if arrow else ""
        self._drawn.append(
            f'<path d="{shape}" fill="none" stroke="{hue}" stroke-width="{thick:g}"{tip}/>'
        )

    def text(
        self, x: float, y: float, words: str, size: float = 13, hue: str = INK,
        anchor: str = "start", bold: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        """Words on the base line ``y``; each line of them 1.3 sizes lower."""
        weight = ' font-weight="600"' if bold else ""
        family = ' font-family="ui-monospace,monospace"' if mono else ""
        for k, one in enumerate(words.split("\n")):
            self._drawn.append(
                f'<text x="{x:g}" y="{y + 1.3 * size * k:g}" font-size="{size:g}" fill="{hue}" '
                f'text-anchor="{anchor}"{weight}{family}>{escape(one)}</text>'
            )

    def plus(self, x: float, y: float, on: bool = True, radius: float = 11) -> None:
        """A gate: a sum that is taken, or left out."""
        self.dot(x, y, radius, GROUND if on else "#f3f4f6", INK if on else FAINT)
        hue, arm = (INK, radius * 0.55) if on else (FAINT, radius * 0.55)
        self.line(x - arm, y, x + arm, y, hue, 1.8)
        self.line(x, y - arm, x, y + arm, hue, 1.8)

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            'font-family="system-ui,sans-serif">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{GROUND}"/>'
        title = f"<title>{escape(self.title)}</title>"
        return "\n".join([head, title, _HEAD, ground, *self._drawn, "</svg>"]) + "\n"
