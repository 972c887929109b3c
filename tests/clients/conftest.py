"""What the tests of the clients share: the command as it is installed, a fake server, a bundle without a model."""

from __future__ import annotations

import importlib.util
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meet_bundle import (
    BaseModelSource,
    Bundle,
    LoraControls,
    Manifest,
    Preference,
    Probe,
    open_bundle,
    seal,
    writing_bundle,
)
from meet_cli.main import cli, run

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_openai.py")


def distribution(folder: Path, name: str, commands: dict[str, str]) -> None:
    """Makes `folder` hold the metadata of an installed distribution with these `meet.commands`."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{command} = {target}" for command, target in commands.items()]
    (info / "entry_points.txt").write_text("\n".join(["[meet.commands]", *lines, ""]))


@pytest.fixture(scope="session")
def own_commands() -> dict[str, str]:
    """MEET's own subcommands, as pyproject.toml names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    commands: dict[str, str] = project["entry-points"]["meet.commands"]
    return commands


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_commands: dict[str, str]) -> Path:
    """A folder on the path where `meet` is installed, and where a test may install more."""
    folder = tmp_path / "site"
    distribution(folder, "meet", own_commands)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("MEET_API_KEY", raising=False)
    monkeypatch.delenv("MEET_URL", raising=False)
    return folder


@pytest.fixture
def install(installed: Path) -> Callable[[str, dict[str, str]], None]:
    """Installs another distribution with subcommands of its own."""
    return lambda name, commands: distribution(installed, name, commands)


@dataclass
class Outcome:
    """What a run of `meet` left."""

    exit_code: int
    out: str
    err: str


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Runs `meet` with arguments, and with text piped in, as the script does."""

    def meet(*args: str, piped: str = "") -> Outcome:
        runner = CliRunner()
        with runner.isolation(input=piped) as streams:
            exit_code = run(cli, args)
            return Outcome(exit_code, streams[0].getvalue().decode(), streams[1].getvalue().decode())

    return meet


@pytest.fixture(scope="session")
def fake_openai() -> Any:
    """The module of the fake server."""
    spec = importlib.util.spec_from_file_location("fake_openai", FAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(fake_openai: Any) -> Iterator[Any]:
    """A fake MEET server that runs in this process."""
    with fake_openai.FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A whole bundle on the axis length whose model and controls are plain text."""
    return make_bundle(tmp_path / "bundle")


def make_bundle(folder: Path) -> Bundle:
    probe = Probe(token_ids=(1, 2), start=1, controlled=(-1.0,), uncontrolled=(-2.0,), dtype="float32")
    preferences = tuple(
        Preference(
            name=name, axis="length", opposite=opposite, instruction=instruction, path=f"controls/{name}",
            digest="0" * 64, trained_examples=3, probe=probe, aliases=(f"{name}-alias",),
        )
        for name, opposite, instruction in (("concise", "detailed", "Be short."), ("detailed", "concise", "Be long."))
    )  # fmt: skip
    with writing_bundle(folder) as partial:
        for part in ("model", *(p.path for p in preferences)):
            (partial / part).mkdir(parents=True)
            (partial / part / "weights.txt").write_text(part)
        manifest = Manifest(
            name="toy", base=BaseModelSource(source="toy-base"), model_digest="0" * 64, model_dtype="float32",
            controls=LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True),
            preferences=preferences, files={},
        )  # fmt: skip
        seal(partial, manifest)
    return open_bundle(folder)
