"""`meet eval` and `meet demo`, with fake servers started as the real ones are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meet_bundle import Bundle
from meet_cli import extras

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
    monkeypatch.setattr("meet_cli.evaluating.meet_server_command", meet_command)
    monkeypatch.setattr("meet_cli.evaluating.plain_server_command", plain_command)
    monkeypatch.setattr("meet_training.base_model.check_causal_model", lambda source: None)
    return names


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {n}?"}) + "\n" for n in range(5)))
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
        assert started == ["meet", "plain toy-base"]
        assert "100.0% [57, 100]" in outcome.out  # 5 of 5: Wilson's interval begins at 0.5655
        assert "1 | 4 | 1" in outcome.out
        assert "9 | 4 | 9" in outcome.out
        data = json.loads(figures.read_text())
        assert data == json.loads((bundle.path / "report/evaluation.json").read_text())
        concise, detailed = data["preferences"]
        assert (concise["median_controlled"], detailed["median_prompted"]) == (1, 9)
        assert (data["num_prompts"], data["prompted_skipped"]) == (5, None)

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
        assert "does not hold: concise holds on 0.0% of 5 prompts, the bound of its axis length is 95.0%" in outcome.err

    def test_a_running_server_is_asked(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        server.versions = {p.name: p.version for p in bundle.manifest.preferences}
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--url", f"{server.url}/v1", "--no-base")
        assert outcome.exit_code == 0, outcome.err
        assert started == []
        asked = [body["preference"] for body in server.bodies]
        assert {name: asked.count(name) for name in asked} == {"concise": 5, "detailed": 5, None: 5}
        assert {body["temperature"] for body in server.bodies} == {0.0}
        assert {body["repetition_penalty"] for body in server.bodies} == {1.1}
        assert {body["max_tokens"] for body in server.bodies} == {400}

    def test_a_server_with_another_bundle_is_refused(
        self, meet: Callable[..., Any], started: list[str], bundle: Bundle, prompts: Path, server: Any
    ) -> None:
        outcome = meet("eval", str(bundle.path), "--data", str(prompts), "--url", server.url)
        assert outcome.exit_code == 2
        assert f"{server.url} does not serve this bundle: its version of 'concise' is {'a' * 12}" in outcome.err

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
        assert 0 < len(server.bodies) <= 15 - 5

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
        assert "time spent: checking 0 s, replies of the bundle" in outcome.out
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
