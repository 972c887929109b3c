"""`meet serve`, `train` and `data generate`: what they hand on, and what they refuse. Others do the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from meet_bundle import Bundle, MeetError
from meet_cli import extras

CONFIG = """
name: toy
base: toy-base
output: OUTPUT
data: [{path: data.jsonl}]
preferences: {concise: {axis: length}, detailed: {axis: length}}
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module with these attributes in the place of a real one."""

    def put(name: str, **attributes: Any) -> None:
        stand_in = ModuleType(name)
        vars(stand_in).update(attributes)
        monkeypatch.setitem(sys.modules, name, stand_in)

    return put


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: name)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda gone: monkeypatch.setattr(extras, "find_spec", lambda name: None if name == gone else name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(CONFIG.replace("OUTPUT", str(tmp_path / "out")))
    return path


@pytest.mark.parametrize(
    ("args", "gone", "extra"),
    [
        (("train", "c.yaml"), "torch", "meet[training]"),
        (("eval", "b"), "peft", "meet[training]"),
        (("demo",), "accelerate", "meet[training]"),
        (("demo",), "vllm", "meet[server,cpu]"),
        (("data", "generate", "c.yaml"), "transformers", "meet[training]"),
        (("serve", "."), "fastapi", "meet[server]"),
        (("serve", "."), "vllm", "meet[server,cpu]"),
    ],
)
def test_a_missing_extra_is_named(
    meet: Callable[..., Any], missing: Callable[[str], None], args: tuple[str, ...], gone: str, extra: str
) -> None:
    missing(gone)
    outcome = meet(*args)
    assert outcome.exit_code == 2
    assert gone in outcome.err
    assert extra in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.usefixtures("everything_installed")
class TestServe:
    def test_settings(
        self, meet: Callable[..., Any], module: Callable[..., None], bundle: Bundle, tmp_path: Path
    ) -> None:
        served: list[Any] = []
        module("meet_server.run", serve=served.append)
        config = tmp_path / "serve.yaml"
        config.write_text("host: localhost\nport: 1\nlimits: {max_nesting: 20, max_headers: 30}\n")
        args = ("--port", "8123", "--config", str(config), "--set", "limits.max_headers=40", "--keys-file", "keys.yaml")
        assert meet("serve", str(bundle.path), *args, "--", "--max-model-len", "99", "--port-like").exit_code == 0
        assert served[0].bundle == bundle.path
        assert (served[0].host, served[0].port, served[0].keys_file) == ("localhost", 8123, Path("keys.yaml"))
        assert served[0].engine_args == ("--max-model-len", "99", "--port-like")
        assert (served[0].limits.max_nesting, served[0].limits.max_headers) == (20, 40)

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("/no/such/bundle",), "'/no/such/bundle' does not exist"),
            ((".", "--port", "0"), "0 is not in the range"),
            ((".", "stray"), "unexpected argument 'stray'"),
            ((".", "--max-model-len", "9"), "No such option '--max-model-len'"),
            ((".", "--set", "limits.max_nesting=1"), "setting limits.max_nesting is 1: "),
            ((".", "--set", "limits=1"), "setting limits is 1: "),
            ((".", "--set", "nonsense.a=1"), "setting nonsense"),
            ((".", "--set", "nonsense"), "setting 'nonsense': it must be written a.b=c"),
            ((".", "--config", "/no/such.yaml"), "settings /no/such.yaml cannot be read"),
        ],
    )
    def test_mistakes(self, meet: Callable[..., Any], args: tuple[str, ...], words: str) -> None:
        outcome = meet("serve", *args)
        assert outcome.exit_code == 2
        assert words in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.usefixtures("everything_installed")
class TestTrain:
    def test_overrides_progress_and_figures(
        self, meet: Callable[..., Any], module: Callable[..., None], config: Path, bundle: Bundle, tmp_path: Path
    ) -> None:
        asked: list[tuple[Any, bool]] = []

        def train(config: Any, *, replace: bool, callbacks: list[Any]) -> Bundle:
            asked.append((config, replace))
            callbacks[0].on_phase("fetching the base")
            callbacks[0].on_part("examples rendered", 256, 300)
            callbacks[0].on_part("examples rendered", 290, 300)
            callbacks[0].on_part("examples rendered", 300, 300)
            callbacks[0].on_warning("the disk is small")
            for step in (1, 2):
                callbacks[0].on_step(
                    SimpleNamespace(
                        stage="stage1", step=step, num_steps=2, loss=1 / step, tokens_per_s=321.0, seconds_left=200.0
                    )
                )
            return bundle

        module("meet_training.run", train=train)
        figures = tmp_path / "figures.json"
        args = ("--stage1.epochs=3", str(config), "--json", str(figures), "--name=other")
        outcome = meet("train", *args, "--overwrite")
        assert outcome.exit_code == 0, outcome.err
        ((used, replace),) = asked
        assert (used.stage1.epochs, used.name, replace) == (3.0, "other", True)
        assert "fetching the base ..." in outcome.err
        rendered = [line for line in outcome.err.splitlines() if "rendered" in line]
        assert rendered == ["examples rendered: 256/300", "examples rendered: 300/300"]
        assert "warning: the disk is small\n" in outcome.err
        assert "stage1: 2/2, loss 0.500, 321 tokens/s, 3 min 20 s left" in outcome.err
        assert str(bundle.path) in outcome.out
        assert json.loads(figures.read_text())["stages"] == [
            {"stage": "stage1", "steps": 2, "loss": 0.5, "tokens_per_s": 321.0}
        ]

    def test_a_bundle_that_is_there_is_kept(self, meet: Callable[..., Any], config: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        outcome = meet("train", str(config))
        assert outcome.exit_code == 2
        assert f"{tmp_path / 'out'} exists; give --overwrite" in outcome.err

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            ((), "expected one CONFIG.yaml, found none"),
            (("a.yaml", "b.yaml"), "expected one CONFIG.yaml, found a.yaml, b.yaml"),
            (("a.yaml", "--overwite"), "no such option '--overwite'"),
            (("a.yaml", "-x=1"), "no such option '-x=1'"),
            (("/no/such.yaml",), "/no/such.yaml cannot be read: No such file or directory"),
        ],
    )
    def test_mistakes(self, meet: Callable[..., Any], args: tuple[str, ...], words: str) -> None:
        outcome = meet("train", *args)
        assert outcome.exit_code == 2
        assert words in outcome.err
        assert outcome.err.count("\n") == 1

    def test_an_unknown_field_is_a_mistake(self, meet: Callable[..., Any], config: Path) -> None:
        outcome = meet("train", str(config), "--stage1.epoch=3")
        assert outcome.exit_code == 2
        assert "stage1.epoch: unknown key" in outcome.err


@pytest.mark.usefixtures("everything_installed")
class TestGenerate:
    @pytest.fixture
    def made(self, module: Callable[..., None]) -> list[tuple[Any, str]]:
        """What `generate` was asked for; it makes nothing."""
        asked: list[tuple[Any, str]] = []

        async def generate(config: Any, base_url: str | None, *, progress: Callable[[Any], None]) -> Any:
            asked.append((config, base_url))
            progress(SimpleNamespace(num_done=3, num_requests=4, num_tokens=300, elapsed_s=2.0))
            return SimpleNamespace(table=lambda: "the table", rows=3, model_dump=lambda mode: {"rows": 3})

        module("meet_training.data.generate", generate=generate, num_missing=lambda config: 1)
        return asked

    @pytest.fixture
    def generate_yaml(self, tmp_path: Path) -> Callable[[str], Path]:
        def write(more: str) -> Path:
            path = tmp_path / "generate.yaml"
            recipe = "{axis: length, instruction: Be short., attribute: words, select: lowest}"
            path.write_text(f"prompts: p.jsonl\noutput: o.jsonl\npreferences: {{concise: {recipe}}}\n{more}\n")
            return path

        return write

    def test_an_endpoint_is_asked(
        self, meet: Callable[..., Any], made: list[Any], generate_yaml: Callable[[str], Path], tmp_path: Path
    ) -> None:
        figures = tmp_path / "figures.json"
        path = generate_yaml("base_url: http://there/v1\nmodel: m")
        outcome = meet("data", "generate", str(path), "--json", str(figures))
        assert outcome.exit_code == 0, outcome.err
        assert outcome.out == f"the table\n{tmp_path / 'o.jsonl'}: 3 rows\n"
        assert "requests: 3/4, 150 tokens/s, 2 s" in outcome.err
        assert made[0][1] == "http://there/v1"
        assert json.loads(figures.read_text()) == {"rows": 3}

    def test_without_an_endpoint_the_model_is_served(
        self,
        meet: Callable[..., Any],
        made: list[Any],
        generate_yaml: Callable[[str], Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        commands: list[tuple[Any, ...]] = []
        fake = Path(__file__).with_name("fake_openai.py")

        def command(model: Path, name: str, port: int, engine_args: tuple[str, ...]) -> list[str]:
            commands.append((model, name, engine_args))
            return [sys.executable, str(fake), str(port)]

        monkeypatch.setattr("meet_cli.commands.data.plain_server_command", command)
        outcome = meet("data", "generate", str(generate_yaml("model: /some/model")), "--", "--max-model-len", "9")
        assert outcome.exit_code == 0, outcome.err
        assert commands == [(Path("/some/model"), "/some/model", ("--max-model-len", "9"))]
        assert made[0][1].startswith("http://127.0.0.1:")
        assert made[0][1].endswith("/v1")

    def test_nothing_is_served_where_nothing_is_missing(
        self,
        meet: Callable[..., Any],
        made: list[Any],
        generate_yaml: Callable[[str], Path],
        module: Callable[..., None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from meet_training.data.generate import generate

        def serve(*_: object) -> list[str]:
            raise AssertionError("a server was asked for")

        module("meet_training.data.generate", generate=generate, num_missing=lambda config: 0)
        monkeypatch.setattr("meet_cli.commands.data.plain_server_command", serve)
        outcome = meet("data", "generate", str(generate_yaml("model: /some/model")))
        assert outcome.exit_code == 0, outcome.err
        assert made[0][1] is None

    def test_engine_arguments_for_an_endpoint_are_a_mistake(
        self, meet: Callable[..., Any], generate_yaml: Callable[[str], Path]
    ) -> None:
        outcome = meet("data", "generate", str(generate_yaml("base_url: http://there/v1")), "--", "--x")
        assert outcome.exit_code == 2

    def test_what_generation_refuses_is_one_line(
        self, meet: Callable[..., Any], generate_yaml: Callable[[str], Path], module: Callable[..., None]
    ) -> None:
        async def generate(config: Any, base_url: str, *, progress: Any) -> Any:
            raise MeetError("no such prompts")

        module("meet_training.data.generate", generate=generate, num_missing=lambda config: 1)
        outcome = meet("data", "generate", str(generate_yaml("base_url: http://there/v1")))
        assert (outcome.exit_code, outcome.err) == (2, "meet: error: no such prompts\n")
