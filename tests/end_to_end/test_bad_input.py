"""Every mistake of a user's: one clear line, exit 2, nothing written."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meet_cli.main import main

CONFIG = """
name: t
base: {base}
output: {output}
data: [{{path: data.jsonl}}]
preferences: {{short: {{axis: length, opposite: long}}, long: {{axis: length}}}}
precision: float32
stage1: {{epochs: 1}}
stage2: {{epochs: 0}}
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `meet` and returns its exit status and what it said on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["meet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            sys.exit(main())
        return int(caught.value.code or 0), capfd.readouterr().err

    return run


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path, preference_file: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(CONFIG.format(base=tiny_base, output=tmp_path / "out"))
    return path


@pytest.fixture
def bundle(config: Path, run: Run, tmp_path: Path) -> Path:
    status, _ = run("train", config)
    assert status == 0
    return tmp_path / "out"


def refused(result: tuple[int, str], *words: str) -> None:
    status, said = result
    lines = [line for line in said.splitlines() if line.startswith("meet: error:")]
    assert status == 2, said
    assert len(lines) == 1, said
    assert "Traceback" not in said
    for word in words:
        assert word in lines[0]


DATA = {
    "unreadable": (b"\xff\xfe{", "is not UTF-8"),
    "empty": (b"", "no rows"),
    "one label": (b'{"prompt": "a", "reply": "b", "preference": "short"}\n', "every row has the label 'short'"),
    "not JSON": (b"prompt,reply\n", "data.jsonl:1: not JSON"),
}


@pytest.mark.parametrize("mistake", DATA)
def test_bad_data(config: Path, run: Run, tmp_path: Path, mistake: str) -> None:
    content, message = DATA[mistake]
    (tmp_path / "data.jsonl").write_bytes(content)
    refused(run("train", config), "data.jsonl", message)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.jsonl", "train.yaml"]


def test_a_missing_file(config: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").unlink()
    refused(run("train", config), "data.jsonl cannot be read")
    refused(run("train", tmp_path / "none.yaml"), "none.yaml cannot be read")


def test_an_unknown_key_and_a_value_that_is_not_allowed(config: Path, run: Run, tmp_path: Path) -> None:
    refused(run("train", config, "--stage1.epoch=2"), "stage1.epoch: unknown key")
    refused(run("train", config, "--stage1.epochs=-1"), "stage1.epochs", "greater than or equal to 0", "-1")
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_no_causal_model(config: Path, run: Run, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(small).save_pretrained(tmp_path / "bert")
    refused(run("train", config, f"--base={tmp_path / 'bert'}"), "no causal language model", "BertModel")
    refused(run("train", config, f"--base={tmp_path / 'nowhere'}"), "base:", "nowhere")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists(bundle: Path, config: Path, run: Run) -> None:
    before = (bundle / "meet.json").read_bytes()
    refused(run("train", config), "exists")
    assert (bundle / "meet.json").read_bytes() == before


def test_a_bundle_altered_by_one_byte(bundle: Path, run: Run) -> None:
    file = bundle / "controls/short/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for command in ("serve", "eval"):
        more = ["--data", bundle / "meet.json"] if command == "eval" else []
        refused(run(command, bundle, *more), "controls/short/adapter_model.safetensors was altered")
    refused(run("bundle", "verify", bundle), "controls/short/adapter_model.safetensors was altered")


def test_a_control_for_another_model(bundle: Path, run: Run, tmp_path: Path) -> None:
    """Its digests are right: somebody sealed the bundle with it. It still does not fit the model."""
    from safetensors.numpy import load_file, save_file

    from meet_bundle import open_bundle, seal

    file = bundle / "controls/short/adapter_model.safetensors"
    wide = {name: tensor.repeat(2, axis=-1) if "lora_A" in name else tensor for name, tensor in load_file(file).items()}
    save_file(wide, file)
    seal(bundle, open_bundle(bundle, verify=False).manifest)
    refused(run("serve", bundle), "short")


def test_a_port_in_use(bundle: Path, run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(run("serve", bundle, "--port", port), str(port), "in use")


def test_no_bundle(run: Run, tmp_path: Path) -> None:
    for command in (("serve", tmp_path), ("bundle", "verify", tmp_path), ("bundle", "inspect", tmp_path)):
        refused(run(*command), "no bundle")


def test_another_format_version(bundle: Path, run: Run) -> None:
    manifest = json.loads((bundle / "meet.json").read_text())
    (bundle / "meet.json").write_text(json.dumps(manifest | {"format_version": 99}))
    refused(run("serve", bundle), "format_version is 99")
    shutil.rmtree(bundle)
