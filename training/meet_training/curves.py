"""Learning curves as one SVG file that needs nothing else: a plot for each stage, a line for each control.

Colours follow the reader's light or dark theme where the viewer tells it. Knows losses and names, nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 16.0, 36.0, 44.0
LEGEND_ROW = 20.0
NUM_TICKS = 5

# Distinguishable for most colour-blind readers, and on white as on black (after Wong 2011, Nature Methods 8, 441).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8a63d2", "#7f7f7f")
DASHES = ("none", "6 3", "2 3")

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.axis{stroke:#222}.grid{stroke:#ddd}.back{fill:#fff}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.axis{stroke:#ddd}.grid{stroke:#444}.back{fill:#161616}}"
)


def draw_curves(losses: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """An SVG document. `losses`: stage -> control -> loss at each of its steps, in nats."""
    names = list(dict.fromkeys(name for stage in losses.values() for name in stage))
    looks = {name: _look(i) for i, name in enumerate(names)}
    plots = [_plot(stage, curves, looks, i * WIDTH) for i, (stage, curves) in enumerate(losses.items())]
    width, height = WIDTH * max(1, len(losses)), HEIGHT + LEGEND_ROW * len(names) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>Loss of each control</title><style>{STYLE}</style>",
            '<rect class="back" width="100%" height="100%"/>',
            *plots,
            *(_legend(name, look, HEIGHT + LEGEND_ROW * i) for i, (name, look) in enumerate(looks.items())),
            "</svg>\n",
        ]
    )


def ticks(low: float, high: float, num: int = NUM_TICKS) -> list[float]:
    """About `num` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10((high - low) / num))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= num)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _look(index: int) -> str:
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    return f'stroke="{COLOURS[index % len(COLOURS)]}" stroke-dasharray="{dash}" stroke-width="1.8" fill="none"'


def _plot(stage: str, curves: Mapping[str, Sequence[float]], looks: Mapping[str, str], left: float) -> str:
    low, high = _range([loss for curve in curves.values() for loss in curve])
    num = max(2, *map(len, curves.values()), 2)

    def x(step: float) -> float:
        return left + LEFT + (step - 1) / (num - 1) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - loss) / (high - low) * (HEIGHT - TOP - BOTTOM)

    start, end, bottom = x(1), x(num), y(low)
    parts = [_text(start, TOP - 14, stage, 'font-weight="bold"'), _text(left + 8, TOP - 14, "loss")]
    for value in ticks(low, high):
        parts.append(f'<path class="grid" d="M{start:.1f} {y(value):.1f}H{end:.1f}"/>')
        parts.append(_text(start - 6, y(value) + 4, f"{value:g}", 'text-anchor="end"'))
    whole = [value for value in ticks(1, num) if value == int(value)]
    parts += [_text(x(value), bottom + 16, f"{value:g}", 'text-anchor="middle"') for value in whole]
    parts.append(_text((start + end) / 2, HEIGHT - 10, "step", 'text-anchor="middle"'))
    parts.append(f'<path class="axis" fill="none" d="M{start:.1f} {y(high):.1f}V{bottom:.1f}H{end:.1f}"/>')
    for name, curve in curves.items():
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in enumerate(curve, start=1))
        parts.append(f'<polyline points="{points}" {looks[name]}><title>{escape(name)}</title></polyline>')
    return "\n".join(parts)


def _range(losses: Sequence[float]) -> tuple[float, float]:
    """What the vertical axis spans: all losses, and some air."""
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'


def _legend(name: str, look: str, top: float) -> str:
    middle = top + LEGEND_ROW / 2
    return (
        f'<line x1="{LEFT:g}" x2="{LEFT + 28:g}" y1="{middle:g}" y2="{middle:g}" {look}/>'
        f'<text x="{LEFT + 36:g}" y="{middle + 4:g}">{escape(name)}</text>'
    )
