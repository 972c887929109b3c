"""Pictures of figures as inline SVG: no script, no file, colours from the page. Pure: numbers in, markup out.

The numbers themselves stand in a table beside each picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 260, 56, 14, 14, 40


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: points of x, y and the ends of y's interval, x ascending. The point at `mark` stands out."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    mark: float | None


def interval(low: float, value: float, high: float) -> str:
    """A share with its interval on a rule from 0 to 1; the numbers stand beside it."""
    return (
        '<svg class="interval" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">'
        '<line class="rule" x1="4" x2="116" y1="8" y2="8"/>'
        f'<line class="span" x1="{_across(low)}" x2="{_across(high)}" y1="8" y2="8"/>'
        f'<circle class="dot" cx="{_across(value)}" cy="8" r="4"/></svg>'
    )


def shift(value: float, kind: str) -> str:
    """A bar from the middle, -1 to the left and 1 to the right; `kind` is its class: asked, leak or still.

    The number stands beside it.
    """
    start, length = 60 + 56 * min(value, 0.0), 56 * abs(value)
    return (
        '<svg class="shift" viewBox="0 0 120 16" width="120" height="16" aria-hidden="true">'
        f'<rect class="{escape(kind)}" x="{start:.1f}" y="3" width="{length:.1f}" height="10"/>'
        '<line class="rule" x1="60" x2="60" y1="0" y2="16"/></svg>'
    )


def chart(lines: Sequence[Line], x_name: str, y_name: str, text: str) -> str:
    """Lines with their intervals as bands; the marked point of each, where there is one, is larger."""
    xs = [x for line in lines for x, *_ in line.points]
    ys = [y for line in lines for _, *rest in line.points for y in rest]
    across, up = _scale(xs, LEFT, WIDTH - RIGHT), _scale(ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(text)}">',
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
        f'<line class="rule" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>',
    ]
    parts += [
        f'<text x="{across.of(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{x:g}</text>'
        for x in sorted(set(xs))
    ]
    parts += [
        f'<text x="{LEFT - 6}" y="{up.of(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
        for y in sorted({min(ys), max(ys)})
    ]
    parts.append(f'<text x="{LEFT + 6}" y="{TOP + 4}">{escape(y_name)}</text>')
    for number, line in enumerate(lines):
        parts += _drawn(line, f"line{number % 4}", across, up)
    return "".join([*parts, "</svg>"])


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    spread: float
    start: float
    end: float

    def of(self, value: float) -> float:
        return self.start + (value - self.low) / self.spread * (self.end - self.start)


def _scale(values: Sequence[float], start: float, end: float) -> _Scale:
    low, high = min(values), max(values)
    return _Scale(low, (high - low) or 1.0, start, end)


def _drawn(line: Line, kind: str, across: _Scale, up: _Scale) -> list[str]:
    tops = [f"{across.of(x):.1f},{up.of(high):.1f}" for x, _, _, high in line.points]
    bottoms = [f"{across.of(x):.1f},{up.of(low):.1f}" for x, _, low, _ in reversed(line.points)]
    middle = [(x, across.of(x), up.of(y)) for x, y, _, _ in line.points]
    _, last_x, last_y = middle[-1]
    name_y = max(last_y - 9, 12.0)
    return [
        f'<polygon class="band {kind}" points="{" ".join([*tops, *bottoms])}"/>',
        f'<polyline class="curve {kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for _, x, y in middle)}"/>',
        *(
            f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if at == line.mark else 3}"/>'
            for at, x, y in middle
        ),
        f'<text class="{kind}" x="{last_x:.1f}" y="{name_y:.1f}" text-anchor="end">{escape(line.name)}</text>',
    ]


def _across(share: float) -> str:
    return f"{4 + 112 * share:.1f}"
