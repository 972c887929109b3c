"""An evaluation as one HTML page that needs nothing else: no script, no network. Pure: the report's data in, text out.

The first screen says of each preference whether it holds. Everything that came from a model or a user is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

from meet_training.evaluation import page_figures as figures
from meet_training.evaluation.page_style import STYLE
from meet_training.evaluation.prompts import shortened
from meet_training.evaluation.verdict import Verdict

_TESTED_BY = {
    "what it was trained by": "It is tested by what its training data was chosen by: that it moves is shown, not that "
    "people would agree.",
    "something else": "It is tested by something else than its training data was chosen by.",
    "not said": "The configuration does not say what its training data was chosen by (trained_by).",
}


def page(data: dict[str, Any]) -> str:
    """The page; `data` is what `report_data` returns."""
    title = f"Do the preferences of {data['bundle']['name']} hold?"
    sections = [
        figures.holds(data),
        figures.curves(data["strength"]),
        figures.leakage(data["leakage"]),
        figures.mixes(data["mixes"]),
        figures.log_odds(data["log_odds"], data["log_odds_by_strength"]),
        figures.side_effects(data["side_effects"], data["similarity"]),
        figures.parity(data["parity"]),
        figures.lengths(data["length"]),
        figures.judged(data["judge"]),
        _examples(data["examples"]),
        _made(data),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#figures">Skip to the figures</a>\n'
        f'<header>\n<h1>{escape(title)}</h1>\n{_verdicts(data)}</header>\n<main id="figures">\n'
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _verdicts(data: dict[str, Any]) -> str:
    items = "\n".join(
        f'<li class="{"good" if each["verdict"] == Verdict.HOLDS else "bad"}">{escape(each["sentence"])}'
        f'<br><span class="soft">{escape(_beside(each, data["leakage"]))}</span></li>'
        for each in data["preferences"]
    )
    lines = [f'<ul class="verdicts">\n{items}\n</ul>']
    if data["prompted_skipped"]:
        lines.append(f'<p class="soft">Nobody was prompted: {escape(data["prompted_skipped"])}.</p>')
    lines += [
        f'<p class="soft">{escape(figure)} was not measured: {escape(why)}.</p>'
        for figure, why in data["skipped"].items()
    ]
    lines.append(f'<p class="soft">{data["num_prompts"]} prompts. Intervals: {escape(data["interval"])}.</p>')
    return "\n".join(lines) + "\n"


def _beside(preference: dict[str, Any], leakage: list[dict[str, Any]]) -> str:
    prompted = preference["prompted_holds_vs_opposite"]
    told = [] if prompted is None else [f"A plainly prompted model does on {figures.share(prompted)}."]
    told.append(f"It is on the asked side of no control on {figures.share(preference['holds_vs_uncontrolled'])}.")
    leaks = [cell["attribute"] for cell in leakage if cell["leaks"] and cell["preference"] == preference["preference"]]
    if leaks:
        told.append(f"It moves {', '.join(leaks)} too.")
    return " ".join([*told, _TESTED_BY[preference["tested_by"]]])


def _examples(examples: list[dict[str, Any]]) -> str:
    shown = "\n".join(map(_example, examples))
    return f'<section aria-labelledby="examples"><h2 id="examples">Replies side by side</h2>\n{shown}</section>'


def _example(example: dict[str, Any]) -> str:
    beside = "\n".join(
        f"<div><h4>{escape(reply['of'])}: {reply['value']:.4g} {escape(example['attribute'])}"
        f"{'' if reply['finished'] else ', cut off'}</h4>"
        f'<p class="reply">{escape(reply["text"].strip()) or "(empty)"}</p></div>'
        for reply in example["replies"]
    )
    heading = (
        f"{example['preference']}, {example['kind']} (by {example['margin']:.4g} {example['attribute']}): "
        f"{shortened(example['prompt'], 90)}"
    )
    opened = " open" if example["kind"] == "median" else ""
    return (
        f"<details{opened}><summary>{escape(heading)}</summary>\n"
        f'<p class="reply">{escape(example["prompt"])}</p>\n<div class="beside">{beside}</div></details>'
    )


def _made(data: dict[str, Any]) -> str:
    bundle, sampling = data["bundle"], data["config"]["sampling"]
    said = {
        "digest": bundle["digest"] or "none: an endpoint",
        "base": bundle["base"] or "none: an endpoint",
        "prompts": data["config"]["prompts"],
        "sampling": ", ".join(f"{name} {value}" for name, value in sampling.items()),
    }
    rows = [[name, escape(str(value))] for name, value in said.items()]
    return figures.section("How it was made", figures.table("What was evaluated", ["", ""], rows))
