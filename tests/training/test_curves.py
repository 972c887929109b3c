"""The learning curves in a bundle's report: parsed as the XML that they are, read back as numbers."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from meet_training.curves import draw_curves, ticks

SVG = "{http://www.w3.org/2000/svg}"
LOSSES = {
    "stage1": {"short": [3.0, 2.0, 1.0], "a & <b>": [2.5, 2.5]},
    "stage2": {"short": [1.0, 0.5]},
}


def lines(root: ElementTree.Element) -> list[tuple[str, list[tuple[float, float]]]]:
    found = []
    for line in root.iter(f"{SVG}polyline"):
        title = line.find(f"{SVG}title")
        assert title is not None
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        found.append((title.text or "", points))
    return found


def test_there_is_a_line_for_each_control_and_stage() -> None:
    root = ElementTree.fromstring(draw_curves(LOSSES))
    found = lines(root)
    assert [(name, len(points)) for name, points in found] == [("short", 3), ("a & <b>", 2), ("short", 2)]
    first = found[0][1]
    assert first[1][0] - first[0][0] == pytest.approx(first[2][0] - first[1][0], abs=0.2)
    assert first[0][1] < first[1][1] < first[2][1]  # a loss that falls goes down the page
    assert max(x for x, _ in first) < min(x for x, _ in found[2][1])  # the stages stand side by side
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"stage1", "stage2", "short", "a & <b>", "step", "loss", "1", "2", "3"} <= set(texts)


def test_the_drawing_needs_nothing_from_outside_and_follows_the_theme() -> None:
    drawing = draw_curves(LOSSES)
    assert drawing.count("http") == 1  # the name of the format
    assert "prefers-color-scheme:dark" in drawing


@pytest.mark.parametrize("losses", [{}, {"stage1": {}}, {"stage1": {"a": [1.0]}}, {"stage1": {"a": [2.0, 2.0]}}])
def test_short_and_flat_curves_are_drawn(losses: dict[str, dict[str, list[float]]]) -> None:
    ElementTree.fromstring(draw_curves(losses))


def test_ticks_are_round() -> None:
    assert ticks(0.13, 1.02) == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(1, 8) == [2, 4, 6, 8]
    assert ticks(-3, 42) == [0, 10, 20, 30, 40]
