"""`meet eval` and `meet demo`, with fake servers started as the real ones are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from meet_bundle import BaseModelSource, Bundle, Calibration, open_bundle, recalibrated
from meet_cli import extras
from meet_cli.asking import _resolve_base
from meet_training.base_model import describe_base

FAKE = Path(__file__).with_name("fake_openai.py")
EVALUATION = """
prompts: prompts.jsonl
axes: {length: {attribute: words, higher: HIGHER, bound: 0.95}}
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which servers were started; each is a fake one. Every library counts as installed."""
    names: list[str] = []

    def meet_command(bundle: Path, port: int, engine_args: tuple[str, ...] = ()) -> list[str]:
        names.append("meet")
        return [sys.executable, str(FAKE), str(port)]

    def plain_command(model: Path, name: str, port: int, engine_args: tuple[str, ...] = ()) -> list[str]:
        names.append(f"plain {name}")
        return [sys.executable, str(FAKE), str(port)]

    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    monkeypatch.setattr("meet_cli.asking.meet_server_command", meet_command)
    monkeypatch.setattr("meet_cli.asking.plain_server_command", plain_command)
    monkeypatch.setattr("meet_training.base_model.check_causal_model", lambda source: None)
    return names


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {n}?"}) + "\n" for n in range(6)))
    return path


@pytest.fixture
def evaluation(prompts: Path) -> Callable[[str], Path]:
    def write(higher: str) -> Path:
        path = prompts.with_name("evaluation.yaml")
        path.write_text(EVALUATION.replace("HIGHER", higher))
        return path

    return write


class TestEval:
    def test_one_server_after_the_other_and_a_report(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, tmp_path: Path
    ) -> None:
        figures = tmp_path / "figures.json"
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--json", str(figures))
        assert outcome.exit_code == 0, outcome.err
        assert started == ["plain toy-base", "meet"]  # the base first: what it replied is scored by the other
        assert "100.0% [61, 100]" in outcome.out  # 6 of 6: Wilson's interval begins at 0.6097
        assert "1 | 4 | 1" in outcome.out
        assert "9 | 4 | 9" in outcome.out
        data = json.loads(figures.read_text())
        assert data == json.loads((bundle.path / "report/evaluation.json").read_text())
        concise, detailed = data["preferences"]
        assert (concise["median_controlled"], detailed["median_prompted"]) == (1, 9)
        assert (data["num_prompts"], data["prompted_skipped"]) == (6, None)

    def test_a_second_run_asks_nobody(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        first = meet("eval", str(bundle.path), "--data", str(prompts))
        started.clear()
        second = meet("eval", str(bundle.path), "--data", str(prompts))
        assert (second.exit_code, second.out) == (0, first.out)
        assert started == []

    def test_limit_takes_the_first_prompts(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--limit", "2", "--no-base")
        assert "2 prompts" in outcome.out
        assert "nobody was prompted: --no-base was given" in outcome.out
        assert started == ["meet"]

    def test_a_base_that_is_not_to_be_had_is_said(
        self,
        meet: Callable[..., Any],
        started: list[str],
        bundle: Bundle,
        prompts: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from meet_training.errors import TrainingError

        def refuse(source: Path) -> None:
            raise TrainingError("base: 'toy-base' is no model")

        monkeypatch.setattr("meet_training.base_model.check_causal_model", refuse)
        outcome = meet("eval", str(bundle.path), "--data", str(prompts))
        assert outcome.exit_code == 0, outcome.err
        assert "nobody was prompted: base: 'toy-base' is no model" in outcome.out
        assert started == ["meet"]

    def test_a_bound_that_does_not_hold_exits_1(
        self,
        meet: Callable[..., Any],
        started: list[str],
        bundle: Bundle,
        evaluation: Callable[[str], Path],
    ) -> None:
        assert meet("eval", str(bundle.path), "--config", str(evaluation("detailed"))).exit_code == 0
        outcome = meet("eval", str(bundle.path), "--config", str(evaluation("concise")))
        assert outcome.exit_code == 1
        assert "does not hold: concise holds on 0.0% of 6 prompts, the bound of its axis length is 95.0%" in outcome.err

    def test_a_running_server_is_asked(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        server.versions = {p.name: p.version for p in bundle.manifest.preferences}
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--url", f"{server.url}/v1", "--no-base")
        assert outcome.exit_code == 0, outcome.err
        assert started == []
        asked = [body["preference"] for body in server.bodies]
        assert {name: asked.count(name) for name in asked} == {"concise": 6, "detailed": 6, None: 6}
        assert {body["temperature"] for body in server.bodies} == {0.0}
        assert {body["repetition_penalty"] for body in server.bodies} == {1.1}
        assert {body["max_tokens"] for body in server.bodies} == {400}

    def test_a_server_with_another_bundle_is_refused(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--url", server.url)
        assert outcome.exit_code == 2
        assert f"{server.url} does not serve this bundle: its version of 'concise' is {'a' * 12}" in outcome.err

    def test_a_server_that_takes_the_name_for_another_strength_is_refused(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        server.versions = {p.name: p.version for p in bundle.manifest.preferences}
        half = Calibration(attribute="words", strengths=(0, 0.5), medians=(4, 2), recommended=0.5)
        recalibrated(bundle, {"concise": half})
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--url", server.url)
        assert outcome.exit_code == 2
        assert f"{server.url} serves 'concise' at the strength 1 where none is named" in outcome.err
        assert server.bodies == []

    def test_other_engine_arguments_make_other_replies(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        args = ("eval", str(bundle.path), "--data", str(prompts), "--figures", "none")
        for more, num_started in (((), 2), ((), 0), (("--", "--dtype", "float16"), 2)):
            started.clear()
            assert meet(*args, *more).exit_code == 0
            assert len(started) == num_started

    def test_a_base_with_other_weights_is_not_asked(self, started: list[str], tmp_path: Path) -> None:
        base = tmp_path / "base"
        base.mkdir()
        (base / "model.safetensors").write_bytes(b"weights")
        made_from = describe_base(str(base), base)
        assert _resolve_base(made_from) == base
        assert _resolve_base(BaseModelSource(source=str(base))) == base  # nothing is known of it
        (base / "model.safetensors").write_bytes(b"others")
        assert _resolve_base(made_from) == f"{base} has other weights than the {base} that this bundle was made from"

    def test_a_server_that_fails_is_one_line_and_its_replies_are_kept(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        server.versions = {p.name: p.version for p in bundle.manifest.preferences}
        args = ("eval", str(bundle.path), "--data", str(prompts), "--url", server.url, "--no-base")
        server.fail_after = 6
        outcome = meet(*args)
        assert outcome.exit_code == 2
        assert outcome.err.splitlines()[-1].startswith(f"meet: error: {server.url} answered 500: ")
        server.fail_after = None
        server.bodies.clear()
        assert meet(*args).exit_code == 0
        assert 0 < len(server.bodies) <= 18 - 6

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ("{}", "expected one of the fields `prompt` and `messages`, found nothing"),
            ('{"prompt": 1}', "field 'prompt' must be text that is not empty, found 1"),
            ('{"prompt": "a"', "not JSON"),
            (
                '{"messages": [{"role": "assistant", "content": "a"}]}',
                "must end with the user's message",
            ),
        ],
    )
    def test_bad_data_is_named(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, row: str, words: str
    ) -> None:
        prompts.write_text(f'{{"prompt": "fine"}}\n{row}\n')
        outcome = meet("eval", str(bundle.path), "--data", str(prompts))
        assert outcome.exit_code == 2
        assert f"{prompts}:2: " in outcome.err
        assert words in outcome.err
        assert outcome.err.count("\n") == 1
        assert started == []

    def test_no_prompts_at_all_is_a_mistake(self, meet: Callable[..., Any], started: list[str], bundle: Bundle) -> None:
        assert "no prompts: give --data" in meet("eval", str(bundle.path)).err

    def test_no_bundle_is_a_mistake(
        self, meet: Callable[..., Any], started: list[str], prompts: Path, tmp_path: Path
    ) -> None:
        outcome = meet("eval", str(tmp_path / "none"), "--data", str(prompts))
        assert outcome.exit_code == 2
        assert "is no bundle" in outcome.err


class TestFigures:
    """Every figure through the command, on replies that the fake server makes by rule."""

    ALL = "leakage,side_effects,strength,log_odds,length"

    def evaluated(self, meet: Callable[..., Any], bundle: Bundle, prompts: Path, *args: str) -> dict[str, Any]:
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), *args)
        assert outcome.exit_code == 0, outcome.err
        data: dict[str, Any] = json.loads((bundle.path / "report/evaluation.json").read_text())
        return {**data, "out": outcome.out, "err": outcome.err}

    def test_all_that_a_bundle_of_one_axis_has(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        data = self.evaluated(meet, bundle, prompts, "--figures", "all")
        assert data["skipped"] == {"mixes": "there is one axis alone"}
        assert "mixes was not measured: there is one axis alone" in data["out"]
        concise, detailed = data["strength"]
        # Words at strength s are 4 + s (n - 4), rounded: n is 1 for concise and 9 for detailed.
        assert [point["strength"] for point in concise["points"]] == [-1, -0.5, 0, 0.5, 1, 1.5]
        assert [point["median"]["value"] for point in concise["points"]] == [7, 6, 4, 2, 1, 0]
        assert [point["median"]["value"] for point in detailed["points"]] == [0, 2, 4, 6, 9, 12]
        assert [point["holds"]["share"] for point in concise["points"]] == [0, 0, 0, 1, 1, 0]  # at 1.5 it says nothing
        assert [curve["rank_correlation"]["value"] for curve in data["strength"]] == [1, 1]
        assert [(curve["monotone"], curve["recommended"]) for curve in data["strength"]] == [(True, 1), (True, 1)]
        # The prompted base's replies of 1 and 9 words: the own side is -1 a token, the other -3, without a control -2.
        assert [odds["mean"]["value"] for odds in data["log_odds"]] == [2, 2]
        assert [odds["prefers_own"]["num_prompts"] for odds in data["log_odds"]] == [6, 6]
        for curve in data["log_odds_by_strength"]:
            assert [point["mean"]["value"] for point in curve["points"]] == [-2, -1, 0, 1, 2, 3]
            assert (curve["rank_correlation"]["value"], curve["monotone"]) == (1, True)
        assert "The same at each strength" in data["out"]
        assert {(each["of"], each["max_words"]): each["violated"]["share"] for each in data["length"]} == {
            (of, words): 0 for of in ("concise", "detailed", "uncontrolled", "prompted base") for words in (50, 100)
        }
        # Both servers reply alike without a control and find the reply as likely.
        assert data["parity"]["same"]["share"] == 1
        assert data["parity"]["ratio"]["value"] == pytest.approx(1)
        assert [each["of"] for each in data["side_effects"]] == ["uncontrolled", "concise", "detailed"]
        # concise has 1 of the uncontrolled reply's 4 words: F1 is 2 / 5.
        assert data["side_effects"][1]["similarity"]["value"] == pytest.approx(0.4)
        words = {cell["preference"]: cell["more"]["advantage"]["value"] for cell in data["leakage"] if cell["asked"]}
        assert words == {"concise": -1, "detailed": 1}

    def test_the_number_of_replies_is_said_first_and_a_second_run_asks_nobody(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        # 6 prompts: 2 preferences at 6 strengths, of which 0 is no control and 1 is by name; and asked-for lengths.
        asked = 6 * (2 + 1) + 6 * 2 * 4 + 6 * 3 * 2
        data = self.evaluated(meet, bundle, prompts, "--figures", self.ALL)
        assert f"{asked} replies of toy and {6 * 2 + 6 + 6 * 2} of the prompted model are to be had" in data["err"]
        started.clear()
        again = self.evaluated(meet, bundle, prompts, "--figures", self.ALL)
        assert "0 replies of toy and 0 of the prompted model" in again["err"]
        assert started == []
        assert {**again, "err": ""} == {**data, "err": ""}

    def test_by_default_no_more_is_asked_than_the_base_without_instruction(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        data = self.evaluated(meet, bundle, prompts)
        assert "figures: holds, leakage, side_effects: 18 replies of toy and 18 of the prompted model" in data["err"]
        assert (data["strength"], data["mixes"], data["log_odds"], data["length"]) == ([], [], [], [])

    def test_calibrate_writes_the_curve_and_the_manifest_stays_whole(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        before = bundle.manifest
        self.evaluated(meet, bundle, prompts, "--figures", "none", "--calibrate")
        calibration = open_bundle(bundle.path).manifest.preference("concise").calibration
        assert calibration is not None
        assert (calibration.attribute, calibration.recommended) == ("words", 1.0)
        assert (calibration.strengths, calibration.medians) == ((-1, -0.5, 0, 0.5, 1, 1.5), (7, 6, 4, 2, 1, 0))
        assert open_bundle(bundle.path).manifest.files == before.files
        # What was asked before is still known: the replies depend on no calibration.
        started.clear()
        self.evaluated(meet, bundle, prompts, "--figures", "strength")
        assert started == []

    def test_a_recommended_strength_is_what_the_name_is_measured_at(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path
    ) -> None:
        half = Calibration(attribute="words", strengths=(0, 0.5), medians=(4, 2), recommended=0.5)
        recalibrated(bundle, {"concise": half})
        data = self.evaluated(meet, bundle, prompts, "--figures", "none")
        assert data["preferences"][0]["median_controlled"] == 2

    def test_a_judge_is_asked_for_every_pair_in_both_orders(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any, tmp_path: Path
    ) -> None:
        config = tmp_path / "evaluation.yaml"
        config.write_text(
            "figures: [judge]\n"
            f"judge: {{url: '{server.url}/v1', model: wise}}\n"
            "axes: {length: {attribute: words, higher: detailed, question: 'Which reply is longer?'}}\n"
        )
        data = self.evaluated(meet, bundle, prompts, "--config", str(config))
        # Both preferences ask about the same pairs, in both orders.
        assert len(server.bodies) == 6 * 2
        assert {body["model"] for body in server.bodies} == {"wise"}
        assert not any("repetition_penalty" in body for body in server.bodies)
        # The fake says "word word word word": no letter, so it decides nothing.
        assert [each["no_answer"]["share"] for each in data["judge"]] == [1, 1]
        assert [each["prefers_own"]["share"] for each in data["judge"]] == [0, 0]

    def test_the_page_is_whole_and_says_first_whether_each_holds(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, tmp_path: Path
    ) -> None:
        meet("eval", str(bundle.path), "--data", str(prompts), "--figures", "all", "--output", str(tmp_path / "out"))
        page = (tmp_path / "out/evaluation.html").read_text()
        assert not (bundle.path / "report").exists()
        parser = Page()
        parser.feed(page)
        parser.close()
        assert parser.open == []
        assert parser.outside == []
        assert parser.ids == sorted(set(parser.ids))
        first = page.index("concise holds: measured by words it is on the asked side of detailed on 100% of 6 prompts")
        assert first < page.index("<main")
        for heading in ("Does it hold", "Strength", "What else moves", "Without sampling", "Side effects"):
            assert f">{heading}</h2>" in page
        assert page.count("<svg") > 3
        assert "prefers-color-scheme: dark" in page
        assert page.count("<table>") == page.count("<caption>") == page.count('tabindex="0" role="region"')
        assert page.count("<th") == page.count("<thead") + page.count('<th scope="')
        # Leakage of a control is said at once: the fake's words are all alike, so there is none but words itself.
        assert " too." not in page
        assert "concise, worst (by 8 words): Why 0?" in page

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("--figures", "strenght"), "'strenght' is no figure; use leakage, side_effects, strength"),
            (("--model", "m"), "--model is for --url without BUNDLE"),
            (("--figures", "judge"), "judge: the figure needs someone who judges"),
        ],
    )
    def test_mistakes(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, args: Any, words: str
    ) -> None:
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), *args)
        assert outcome.exit_code == 2
        assert words in outcome.err
        assert started == []


class Page(HTMLParser):
    """What of a page is still open, which ids it has, and what it would load from elsewhere."""

    VOID = frozenset({"meta", "br", "line", "circle", "rect", "polygon", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids = sorted([*self.ids, value or ""])
            if name in ("src", "href") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {value}")
        if tag in ("script", "link", "img", "iframe"):
            self.outside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


class TestEndpoint:
    """An address and no bundle."""

    def test_a_meet_server_says_what_its_preferences_are(
        self, meet: Callable[..., Any], started: list[str], prompts: Path, server: Any, tmp_path: Path
    ) -> None:
        args = ("eval", "--url", server.url, "--data", str(prompts), "--output", str(tmp_path / "out"))
        outcome = meet(*args, "--figures", "all")
        assert outcome.exit_code == 0, outcome.err
        assert started == []
        data = json.loads((tmp_path / "out/evaluation.json").read_text())
        assert data["bundle"] == {"name": f"fake at {server.url}", "digest": None, "base": None}
        assert [each["median_controlled"] for each in data["preferences"]] == [1, 9]
        assert data["prompted_skipped"] == "no preference has an instruction"
        assert [curve["rank_correlation"]["value"] for curve in data["strength"]] == [1, 1]
        assert {body["model"] for body in server.bodies} == {"fake"}

    def test_a_plain_endpoint_is_measured_by_instructions(
        self, meet: Callable[..., Any], started: list[str], prompts: Path, server: Any, tmp_path: Path
    ) -> None:
        server.plain = True
        config = tmp_path / "evaluation.yaml"
        config.write_text(
            "preferences:\n"
            "  concise: {axis: length, opposite: detailed, instruction: Be short.}\n"
            "  detailed: {axis: length, opposite: concise, instruction: Be long.}\n"
        )
        args = ("--url", server.url, "--data", str(prompts), "--config", str(config), "--output", str(tmp_path / "out"))
        outcome = meet("eval", *args, "--figures", "leakage,strength")
        assert outcome.exit_code == 0, outcome.err
        data = json.loads((tmp_path / "out/evaluation.json").read_text())
        assert [each["verdict"] for each in data["preferences"]] == ["holds", "holds"]
        assert data["skipped"]["strength"].startswith("a preference is asked for by words or fields")
        # Nothing that only some endpoints know is sent, and what is asked twice is asked once.
        assert all(set(body) == {"model", "messages", "temperature", "max_tokens"} for body in server.bodies)
        assert len(server.bodies) == 6 * 3

    def test_a_plain_endpoint_needs_to_be_told(
        self, meet: Callable[..., Any], started: list[str], prompts: Path, server: Any, tmp_path: Path
    ) -> None:
        server.plain = True
        outcome = meet("eval", "--url", server.url, "--data", str(prompts), "--output", str(tmp_path / "out"))
        assert outcome.exit_code == 2
        assert f"{server.url} lists no preferences: name them in the configuration" in outcome.err

    def test_what_lists_no_models_is_one_line(
        self, server: Any, prompts: Path, meet: Callable[..., Any], tmp_path: Path
    ) -> None:
        server.page = "<html>welcome</html>"
        outcome = meet("eval", "--url", server.url, "--data", str(prompts), "--output", str(tmp_path / "out"))
        assert outcome.exit_code == 2
        assert outcome.err.endswith(
            f"meet: error: {server.url}: the server lists no models; is it an OpenAI-compatible server? "
            "Else name one with --model\n"
        )

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ((), "give BUNDLE, or --url and --output FOLDER"),
            (("--url", "http://127.0.0.1:9"), "give BUNDLE, or --url and --output FOLDER"),
            (("--url", "http://127.0.0.1:9", "--output", "out", "--calibrate"), "--calibrate needs BUNDLE"),
            (("--url", "http://127.0.0.1:9", "--output", "out"), "the connection to http://127.0.0.1:9 failed"),
        ],
    )
    def test_mistakes(self, meet: Callable[..., Any], started: list[str], prompts: Path, args: Any, words: str) -> None:
        outcome = meet("eval", "--data", str(prompts), *args)
        assert outcome.exit_code == 2
        assert words in outcome.err


class TestDemo:
    def test_once_measures_what_is_there(
        self,
        meet: Callable[..., Any],
        started: list[str],
        bundle: Bundle,
        evaluation: Callable[[str], Path],
        tmp_path: Path,
    ) -> None:
        config, figures = evaluation("detailed").with_name("train.yaml"), tmp_path / "figures.json"
        args = ("demo", "--once", "--bundle", str(bundle.path), "--config", str(config), "--json", str(figures))
        outcome = meet(*args)
        assert outcome.exit_code == 0, outcome.err
        assert "every control holds" in outcome.out
        assert "time spent: checking 0 s, replies of the base model" in outcome.out
        assert set(json.loads(figures.read_text())["seconds"]) == {
            "checking",
            "replies of the bundle",
            "replies of the base model",
        }

    def test_once_says_which_control_does_not_hold(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, evaluation: Callable[[str], Path]
    ) -> None:
        config = evaluation("concise").with_name("train.yaml")
        outcome = meet("demo", "--once", "--bundle", str(bundle.path), "--config", str(config))
        assert outcome.exit_code == 1
        assert "does not hold: concise holds on 0.0%" in outcome.err
        assert "time spent" in outcome.out

    def test_a_missing_bundle_is_trained(
        self,
        meet: Callable[..., Any],
        started: list[str],
        bundle: Bundle,
        evaluation: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        config = evaluation("detailed").with_name("train.yaml")
        config.write_text(
            "{name: toy, base: toy-base, output: elsewhere, data: [{path: d.jsonl}], "
            "preferences: {concise: {axis: length}}}"
        )
        outputs: list[Path] = []

        def train(config: Any) -> tuple[Bundle, dict[str, Any]]:
            outputs.append(config.output)
            return bundle, {}

        monkeypatch.setattr("meet_cli.commands.demo.train_with_progress", train)
        outcome = meet("demo", "--once", "--bundle", str(tmp_path / "new"), "--config", str(config))
        assert outcome.exit_code == 0, outcome.err
        assert outputs == [tmp_path / "new"]

    def test_outside_a_checkout_it_says_so(
        self, meet: Callable[..., Any], started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for args, name in ((("--once",), "evaluation.yaml"), ((), "train.yaml")):
            outcome = meet("demo", *args)
            assert outcome.exit_code == 2
            assert f"examples/demo/{name} is not there: run this in a checkout" in outcome.err

    def test_served_it_says_where_to_look(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def command(folder: Path, port: int) -> list[str]:
            return [sys.executable, str(FAKE), str(port)]

        def interrupt(self: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("meet_cli.commands.demo.meet_server_command", command)
        monkeypatch.setattr("meet_cli.local_server.LocalServer.wait", interrupt)
        outcome = meet("demo", "--bundle", str(bundle.path), "--port", "18473")
        assert outcome.exit_code == 130
        assert "http://127.0.0.1:18473/v1/preferences" in outcome.out
        assert '"preference": "concise"' in outcome.out

    def test_figures_are_only_had_once(self, meet: Callable[..., Any], started: list[str], tmp_path: Path) -> None:
        outcome = meet("demo", "--json", str(tmp_path / "figures.json"))
        assert outcome.exit_code == 2
        assert "--json needs --once" in outcome.err
