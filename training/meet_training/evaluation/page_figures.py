"""The figures of the evaluation's page: semantic tables, with pictures in them or above. Pure.

Text that is handed to `table` is markup already; what came from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from meet_training.evaluation import charts
from meet_training.evaluation.mixes import mix_name

_ATTRIBUTE_NOTE = "Shift: share of prompts with more of it than without a control, less the share with less."


def share(value: dict[str, Any]) -> str:
    """`98% [93, 99]`."""
    return f"{100 * value['share']:.0f}% [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


def estimate(value: dict[str, Any] | None, digits: int = 3) -> str:
    """`1.02 [0.99, 1.05]`."""
    if value is None:
        return "-"
    return " ".join((f"{value['value']:.{digits}g}", f"[{value['low']:.{digits}g}, {value['high']:.{digits}g}]"))


def prompts(*values: dict[str, Any] | None) -> str:
    """Behind how many prompts such figures stand: `40 prompts`, `38 to 40 prompts`."""
    numbers = [value["num_prompts"] for value in values if value is not None]
    low, high = min(numbers), max(numbers)
    return f"{low} prompts" if low == high else f"{low} to {high} prompts"


def table(caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows, in a frame that can be scrolled by keyboard."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    name = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def section(title: str, *parts: str) -> str:
    """A section of the page with its heading."""
    anchor = escape(title.lower().replace(" ", "-").replace(",", ""))
    content = "\n".join(parts)
    return f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(title)}</h2>\n{content}</section>'


def holds(data: dict[str, Any]) -> str:
    """Each preference against its opposite, no control and the prompted model, and the prompted model itself."""
    rows = []
    for each in data["preferences"]:
        medians = [_median(each[of]) for of in ("controlled", "uncontrolled", "prompted")]
        rows.append(
            [
                escape(each["preference"]),
                escape(each["attribute"]),
                *(
                    _pictured(each[name])
                    for name in (
                        "holds_vs_opposite",
                        "prompted_holds_vs_opposite",
                        "holds_vs_uncontrolled",
                        "holds_vs_prompted",
                    )
                ),
                *medians,
                share(each["same_as_uncontrolled"]),
            ]
        )
    headings = [
        "preference", "measured by", "holds against opposite", "prompted model against opposite",
        "against no control", "against prompted model", "median", "without control", "prompted", "same as no control",
    ]  # fmt: skip
    caption = (
        f"Share of {prompts(*(each['holds_vs_uncontrolled'] for each in data['preferences']))} on the asked side, "
    )
    return section("Does it hold", table(f"{caption}and medians", headings, rows))


def curves(found: list[dict[str, Any]]) -> str:
    """One chart an attribute, with the numbers in a table below."""
    if not found:
        return ""
    parts = ['<div class="charts">']
    for attribute in dict.fromkeys(curve["attribute"] for curve in found):
        lines = [_line(curve, curve["summary"]) for curve in found if curve["attribute"] == attribute]
        summary = next(curve["summary"] for curve in found if curve["attribute"] == attribute)
        text = f"{summary.capitalize()} {attribute} against strength, for {', '.join(line.name for line in lines)}"
        drawn = charts.chart(lines, "strength", attribute, text)
        parts.append(
            f"<figure>{drawn}<figcaption>{escape(text)}. The large point is recommended.</figcaption></figure>"
        )
    parts.append("</div>")
    strengths = _strengths(found)
    rows = [
        [
            escape(curve["preference"]),
            escape(f"{curve['summary']} {curve['attribute']}"),
            estimate(curve["rank_correlation"]),
            "yes" if curve["monotone"] else "no",
            f"{curve['recommended']:g}",
            *(_at(curve, strength) for strength in strengths),
        ]
        for curve in found
    ]
    headings = ["control", "attribute", "rank correlation", "monotone", "recommended"]
    headings += [f"at {strength:g}" for strength in strengths]
    caption = (
        "Strength: the attribute, share that holds, share of replies that are empty, cut off or repeat themselves; "
        + prompts(*(curve["rank_correlation"] for curve in found))
    )
    return section("Strength", *parts, table(caption, headings, rows))


def leakage(cells: list[dict[str, Any]]) -> str:
    """The matrix of controls and attributes."""
    if not cells:
        return ""
    attributes = list(dict.fromkeys(cell["attribute"] for cell in cells))
    rows = [
        [escape(name), *(_cell(cell) for cell in cells if cell["preference"] == name)]
        for name in dict.fromkeys(cell["preference"] for cell in cells)
    ]
    caption = (
        f"{_ATTRIBUTE_NOTE} Mean difference in the attribute's unit below. * moves without being asked to. "
        f"{prompts(*(cell['more'] for cell in cells))}."
    )
    return section("What else moves", table(caption, ["control", *map(escape, attributes)], rows))


def mixes(found: list[dict[str, Any]]) -> str:
    """Pairs of preferences that were asked for at once."""
    if not found:
        return ""
    rows = [
        [
            escape(mix_name(mix["preferences"], mix["strengths"])),
            *(_pictured(mix[which]) for which in ("both", "prompted_both", "first", "second")),
        ]
        for mix in found
    ]
    measured = prompts(*(mix["both"] for mix in found))
    caption = f"Share of {measured} on the asked side of each preference's opposite, with one reply"
    headings = ["mix", "both at once", "prompted model, both", "first", "second"]
    return section("Mixes", table(caption, headings, rows))


def log_odds(found: list[dict[str, Any]], curves: list[dict[str, Any]]) -> str:
    """How far each control prefers its own side, and at which strength how far."""
    if not found:
        return ""
    rows = [
        [escape(odds["preference"]), escape(odds["opposite"]), estimate(odds["mean"]), _pictured(odds["prefers_own"])]
        for odds in found
    ]
    caption = (
        "Log-odds of paired replies, nats a token, that the control adds for its own side; 0 is no control; "
        + prompts(*(odds["mean"] for odds in found))
    )
    headings = ["control", "opposite", "log-odds", "prefers its own"]
    parts = [table(caption, headings, rows), *_odds_curves(curves)]
    return section("Without sampling", *parts)


def _odds_curves(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    lines = [_line(curve, "mean") for curve in found]
    text = f"Log-odds in nats a token against strength, for {', '.join(line.name for line in lines)}"
    drawn = charts.chart(lines, "strength", "nats a token", text)
    strengths = _strengths(found)
    rows = [
        [
            escape(curve["preference"]),
            estimate(curve["rank_correlation"]),
            "yes" if curve["monotone"] else "no",
            *(_odds_at(curve, strength) for strength in strengths),
        ]
        for curve in found
    ]
    headings = ["control", "rank correlation", "monotone", *(f"at {strength:g}" for strength in strengths)]
    return [
        f'<div class="charts"><figure>{drawn}<figcaption>{escape(text)}.</figcaption></figure></div>',
        table(f"The same at each strength; {prompts(*(curve['rank_correlation'] for curve in found))}", headings, rows),
    ]


def side_effects(found: list[dict[str, Any]], similarity: str) -> str:
    """Empty, repeating and cut-off replies, and likeness to the uncontrolled reply."""
    if not found:
        return ""
    rows = [
        [
            escape(each["of"]),
            *(share(each[which]) for which in ("empty", "repeats", "truncated")),
            estimate(each["similarity"]),
        ]
        for each in found
    ]
    caption = f"Of {prompts(*(each['repeats'] for each in found))}. Similarity to the uncontrolled reply: {similarity}"
    headings = ["control", "says nothing", "repeats itself", "cut off", "similarity"]
    return section("Side effects", table(caption, headings, rows))


def parity(found: dict[str, Any] | None) -> str:
    """The model without a control beside its base."""
    if found is None:
        return ""
    rows = [
        ["same reply as the base", share(found["same"])],
        ["similarity to the base's reply", estimate(found["similarity"])],
        ["perplexity of neutral replies", estimate(found["meet_perplexity"], 4)],
        ["the same under the base", estimate(found["base_perplexity"], 4)],
        ["ratio of the two", estimate(found["ratio"], 4)],
    ]
    caption = f"What stage 2 changed; {prompts(found['same'], found['ratio'])}"
    return section("Without a control, beside the base", table(caption, ["figure", ""], rows))


def lengths(found: list[dict[str, Any]]) -> str:
    """Asked-for lengths."""
    if not found:
        return ""
    rows = [
        [escape(each["of"]), str(each["max_words"]), _pictured(each["violated"]), estimate(each["words"])]
        for each in found
    ]
    measured = prompts(*(each["violated"] for each in found))
    caption = f"Share of replies to {measured} with more words than these allowed (arXiv 2406.17744)"
    headings = ["replies", "words allowed", "violated", "median words"]
    return section("Asked-for lengths", table(caption, headings, rows))


def judged(found: list[dict[str, Any]]) -> str:
    """What a model that judges says."""
    if not found:
        return ""
    rows = [
        [
            escape(each["preference"]),
            escape(each["opposite"]),
            *(_pictured(each[which]) for which in ("prefers_own", "by_position", "no_answer")),
        ]
        for each in found
    ]
    caption = f"Judged in both orders by {found[0]['judge']}; {prompts(*(each['prefers_own'] for each in found))}"
    headings = ["preference", "opposite", "its reply wins in both", "chosen by position", "no answer"]
    return section("A judge", table(caption, headings, rows))


def _pictured(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{charts.interval(value['low'], value['share'], value['high'])}{share(value)}"


def _median(value: dict[str, Any] | None) -> str:
    return estimate(value, 4)


def _cell(cell: dict[str, Any]) -> str:
    moved = cell["more"]["advantage"]
    kind = "asked" if cell["asked"] else "leak" if cell["leaks"] else "still"
    text = f"{_signed(moved, '.2f')}{'*' if cell['leaks'] else ''}"
    return f"{charts.shift(moved['value'], kind)}{text}<br>{_signed(cell['difference'], '.3g')}"


def _signed(value: dict[str, Any], form: str) -> str:
    return f"{value['value']:+{form}} [{value['low']:+{form}}, {value['high']:+{form}}]"


def _strengths(found: list[dict[str, Any]]) -> list[float]:
    return sorted({point["strength"] for curve in found for point in curve["points"]})


def _line(curve: dict[str, Any], summary: str) -> charts.Line:
    points = [
        (point["strength"], *(point[summary][end] for end in ("value", "low", "high"))) for point in curve["points"]
    ]
    return charts.Line(curve["preference"], points, curve.get("recommended"))


def _odds_at(curve: dict[str, Any], strength: float) -> str:
    return next((estimate(point["mean"]) for point in curve["points"] if point["strength"] == strength), "-")


def _at(curve: dict[str, Any], strength: float) -> str:
    for point in curve["points"]:
        if point["strength"] == strength:
            typical, held, broken = estimate(point[curve["summary"]], 4), share(point["holds"]), share(point["broken"])
            return f"{typical}<br>holds {held}<br>broken {broken}"
    return "-"
