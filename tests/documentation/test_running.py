"""What the documentation shows of `meet`, run for real where it takes seconds: inspection, bundles, transcripts.

The bundles are trained here on the tiny model, under the names that the pages have. `run_by.py` says where the other
commands are run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from documented import ROOT, Block, Command, blocks, commands_of
from run_by import SECONDS, blocks_run_by, commands_run_by, inspects_an_example, starts

from meet_cli.main import cli, run

INSPECTS = [command for command in commands_run_by(SECONDS) if inspects_an_example(command)]
BUNDLES = [block for block in blocks_run_by(SECONDS) if starts("meet", "bundle")(next(commands_of(block)))]
TEXTS = {"docs/DATA.md": "refusal", "docs/BUNDLE.md": "tree"}


SOURCES = os.pathsep.join(str(ROOT / name) for name in ("training", "server", "clients/cli", "clients/python"))
Meet = Callable[[list[str], Path], str]


@pytest.fixture(scope="module")
def meet() -> Iterator[Meet]:
    """Runs `meet` in this process, in a folder, and returns what it printed."""
    with pytest.MonkeyPatch.context() as patch:

        def run_there(words: list[str], folder: Path) -> str:
            patch.chdir(folder)
            with CliRunner().isolation() as streams:
                code = run(cli, words)
                out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
            assert code == 0, err
            return out

        yield run_there


@pytest.fixture(scope="module")
def trained(meet: Meet, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundles/demo`, and `bundles/letters` of the same model, trained in a moment."""
    folder = tmp_path_factory.mktemp("documented")
    for name, labels in (
        ("demo", {"concise": "concise", "detailed": "detailed"}),
        ("letters", {"concise": "formal", "detailed": "warm"}),
    ):
        config = {
            "name": name,
            "base": str(tiny_base),
            "output": f"bundles/{name}",
            "data": [{"path": str(ROOT / "examples" / "data" / "pointwise.jsonl"), "labels": labels}],
            "preferences": {label: {"axis": "any"} for label in labels.values()},
            "stage1": {"epochs": 1},
            "stage2": {"epochs": 0},
            "precision": "float32",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        meet(["train", f"{name}.yaml"], folder)
    return folder


def refused(words: list[str]) -> str:
    """What `meet` says of a mistake, in a process of its own: progress and errors, in the order of a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "meet_cli", *words],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": SOURCES}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    return done.stdout


@pytest.mark.parametrize("command", INSPECTS, ids=lambda command: command.place)
def test_inspection(command: Command, meet: Meet) -> None:
    assert "concise" in meet(command.words[1:], ROOT)


@pytest.mark.parametrize("block", BUNDLES, ids=lambda block: block.place)
def test_a_block_on_bundles(block: Block, trained: Path, meet: Meet, tmp_path: Path) -> None:
    shutil.copytree(trained / "bundles", tmp_path / "bundles")
    meet(["bundle", "pack", "bundles/letters", "formal", "-o", "formal-2.zip"], tmp_path)
    for command in commands_of(block):
        assert meet(command.words[1:], tmp_path)


def test_there_is_something_to_run() -> None:
    assert len(INSPECTS) >= 5
    assert {block.page for block in BUNDLES} >= {"docs/BUNDLE.md", "docs/OPERATING.md"}


@pytest.mark.parametrize(
    "block", [b for b in blocks("shell") if b.text.startswith("$ ")], ids=lambda block: block.place
)
def test_a_transcript(block: Block) -> None:
    [command] = commands_of(block)
    assert refused(command.words[1:]).splitlines() == block.text.splitlines()[1:]


@pytest.mark.parametrize("block", blocks("text"), ids=lambda block: block.place)
def test_other_text_is_what_is_printed_or_written(block: Block, trained: Path) -> None:
    kind = TEXTS.get(block.page)
    if kind == "tree":
        root, *names = [line.split()[0] for line in block.text.splitlines()]
        assert all((trained / root / name).exists() for name in names)
    elif kind == "refusal":
        words = ["train", "examples/data/scores.yaml", "--data.0.path=malformed/scores.csv"]
        assert refused(words) == f"meet: error: {block.text}"
    else:
        pytest.fail(f"{block.place}: no test knows what this text is; give it a language, or a test here")
