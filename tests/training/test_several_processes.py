"""Several processes: the same steps as one, each with a part of the passes. Two real ones, over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from meet_bundle import Bundle, open_bundle
from meet_cli import main as cli
from meet_training.stages.machine import buckets, shares

from .fork_server import ForkServer

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tiny_base: Path, preference_file: Path, tmp_path: Path) -> WriteConfig:
    def write(name: str = "bundle", **more: Any) -> Path:
        fields: dict[str, Any] = {
            "name": "tiny",
            "base": str(tiny_base),
            "output": str(tmp_path / name),
            "data": [{"path": str(preference_file)}],
            "preferences": {"short": {"axis": "length"}, "long": {"axis": "length"}},
            "precision": "float32",
            "device": "cpu",
            "stage1": {"epochs": 2, "batch_size": 3, "learning_rate": 0.01},
            "stage2": {"epochs": 1, "batch_size": 3, "learning_rate": 0.001},
            "tokens_per_pass": 100,  # several passes a step
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields | more))
        return path

    return write


def run(fork_server: ForkServer, *configs: Path) -> list[int]:
    """Trains with a process for each, as a launcher starts them; returns their exit codes."""
    port = free_port()
    pids = [start(fork_server, config, rank, len(configs), port) for rank, config in enumerate(configs)]
    return [fork_server.wait(pid) for pid in pids]


def start(fork_server: ForkServer, config: Path, rank: int, num: int, port: int) -> int:
    env = launched(rank, num, port) if num > 1 else None
    return fork_server.start(["train", str(config)], config.with_suffix(f".{rank}.log"), env)


def launched(rank: int, num: int, port: int) -> dict[str, str]:
    """What a launcher puts into the environment."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assert_same(one: Bundle, other: Bundle) -> None:
    """The same bundle, to rounding."""
    assert one.manifest.files.keys() == other.manifest.files.keys()
    assert one.manifest.made["config"] == other.manifest.made["config"]
    for name in one.manifest.files:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(one.path / name), load_file(other.path / name)
            assert ours.keys() == theirs.keys()
            for tensor, value in ours.items():
                torch.testing.assert_close(
                    value, theirs[tensor], atol=2e-5, rtol=1e-4, msg=lambda m, t=tensor: f"{t}: {m}"
                )
        elif name.endswith(".json"):
            assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    curves = [json.loads((b.path / "report/training.json").read_text())["losses"] for b in (one, other)]
    for stage, losses in curves[0].items():
        for label, curve in losses.items():
            assert curve == pytest.approx(curves[1][stage][label], abs=1e-4)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "own A, frozen in stage 2, LoRA of the model": {
        "controls": {"rank": 4, "share_a": False},
        "stage2": {"epochs": 1, "batch_size": 3, "controls": "frozen", "model": "lora", "model_rank": 4},
    },
    "preference objective": {
        "preferences": {
            "short": {"axis": "length", "opposite": "long"},
            "long": {"axis": "length", "opposite": "short"},
        },
        "objective": {"kind": "preference"},
    },
    "soft prompt, uncontrolled examples of the base": {
        "controls": {"kind": "soft_prompt", "num_virtual_tokens": 4},
        "stage1": {"epochs": 2, "batch_size": 3, "uncontrolled_share": 0.3},
        "stage2": {"epochs": 1, "batch_size": 3, "learning_rate": 0.001, "uncontrolled_share": 0.3},
        "uncontrolled": {"max_new_tokens": 400},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_bundle_of_one(fork_server: ForkServer, write_config: WriteConfig, kind: str) -> None:
    bundles = []
    for num in (1, 2):
        config = write_config(f"bundle{num}", **KINDS[kind])
        assert run(fork_server, *[config] * num) == [0] * num, logs(config)
        bundles.append(open_bundle(config.with_suffix("")))
    assert_same(*bundles)
    main, other = (config.with_suffix(f".{rank}.log").read_text() for rank in (0, 1))
    assert "stage2" in main
    assert other == ""


SHARDED = {"speed": {"sharding": "full"}}


@pytest.mark.parametrize(
    "kind",
    [
        *(KINDS[kind] for kind in KINDS),
        {"speed": {"sharding": "full", "gradient_checkpointing": True}},
    ],
    ids=[*KINDS, "gradient checkpointing"],
)
def test_a_sharded_model_gives_the_bundle_of_one_process(
    fork_server: ForkServer, write_config: WriteConfig, kind: dict[str, Any]
) -> None:
    bundles = []
    for num in (1, 2):
        config = write_config(f"bundle{num}", **(SHARDED | kind))
        assert run(fork_server, *[config] * num) == [0] * num, logs(config)
        bundles.append(open_bundle(config.with_suffix("")))
    assert_same(*bundles)


def test_each_process_holds_its_part_of_a_sharded_model_and_whole_controls(
    fork_server: ForkServer, write_config: WriteConfig, tmp_path: Path
) -> None:
    config, port = write_config(**SHARDED), free_port()
    script = Path(__file__).with_name("count_shards.py")
    files = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    pids = [
        fork_server.start_script(script, [str(config)], file, launched(rank, 2, port))
        for rank, file in enumerate(files)
    ]
    assert [fork_server.wait(pid) for pid in pids] == [0, 0], files[0].read_text() + files[1].read_text()
    found = [json.loads(file.read_text().splitlines()[-1]) for file in files]
    assert sum(each["own"]["model"] for each in found) == found[0]["whole"]
    assert all(0.4 < each["own"]["model"] / each["whole"] < 0.6 for each in found)
    assert all({name: each["own"][name] for name in ("short", "long")} == each["controls"] for each in found)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_killed_run_of_two_goes_on_with_one_and_ends_as_if_never_killed(
    fork_server: ForkServer, write_config: WriteConfig, tmp_path: Path, sharding: str
) -> None:
    more = {
        "speed": {"sharding": sharding},
        "stage2": {"epochs": 20, "batch_size": 3, "learning_rate": 0.0001},
        "checkpoint_every_s": 0,
    }
    undisturbed, killed = write_config("undisturbed", **more), write_config("killed", **more)
    assert run(fork_server, undisturbed) == [0], logs(undisturbed)
    port = free_port()
    pids = [start(fork_server, killed, rank, 2, port) for rank in (0, 1)]
    wait_for(lambda: (tmp_path / ".killed.run/checkpoint.pt").is_file() and "stage2" in logs(killed))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [fork_server.wait(pid) for pid in pids] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "killed").exists()
    assert run(fork_server, killed) == [0], logs(killed)
    assert "stage1: 1/" in logs(undisturbed)
    assert logs(killed).count("stage1: 1/") == 1  # not begun again
    assert_same(*(open_bundle(config.with_suffix("")) for config in (undisturbed, killed)))


def logs(config: Path) -> str:
    return "\n".join(f"{path.name}\n{path.read_text()}" for path in config.parent.glob(f"{config.stem}*.log"))


def test_torchrun_starts_it(write_config: WriteConfig) -> None:
    config = write_config()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "meet_cli", "train"]
    done = subprocess.run([*command, str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundle = config.with_suffix("")
    assert done.stdout.splitlines() == [
        f"{bundle}: long, short",
        f"learning curves: {bundle}/report/training.svg",
        f"serve it with: meet serve {bundle}",
    ]
    refused = subprocess.run([*command, str(config)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1  # torchrun's own, whatever the processes' codes are
    assert refused.stderr.count("meet: error:") == 1
    assert "exitcode  : 2" in refused.stderr


@pytest.mark.parametrize("late", [0, 1])
def test_a_mistake_is_told_under_torchrun_whichever_process_finds_it_first(tmp_path: Path, late: int) -> None:
    script = tmp_path / "late.py"
    script.write_text(
        f"import os, time\ntime.sleep(2 * (os.environ['RANK'] == '{late}'))\nfrom meet_cli.main import main\nmain()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script), "train", "none.yaml"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.count("meet: error:") == 1
    assert "none.yaml" in refused.stderr


def test_a_mistake_of_one_process_alone_is_told_by_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("meet_cli.processes.PATIENCE_S", 0.1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli.run(cli.cli, ["train", "none.yaml"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of a launcher that left it running")
    assert cli.run(cli.cli, ["train", "none.yaml"]) == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("mistaken", [0, 1])
def test_a_mistake_of_one_process_ends_all_and_is_told_once(
    fork_server: ForkServer, write_config: WriteConfig, tmp_path: Path, mistaken: int
) -> None:
    right, wrong = write_config("right"), write_config("wrong", data=[{"path": str(tmp_path / "none.jsonl")}])
    configs = [wrong, right] if mistaken == 0 else [right, wrong]
    assert run(fork_server, *configs) == [2, 2], logs(right) + logs(wrong)
    main, other = (config.with_suffix(f".{rank}.log").read_text() for rank, config in enumerate(configs))
    assert main.count("none.jsonl") == main.count("meet: error:") == 1
    assert other == ""
    assert not (tmp_path / "right").exists()


def test_processes_that_were_told_different_things_are_refused(
    fork_server: ForkServer, write_config: WriteConfig
) -> None:
    configs = [write_config(f"seed{seed}", seed=seed) for seed in (0, 1)]
    assert run(fork_server, *configs) == [2, 2]
    assert "processes 0 and 1 differ in configuration, data and base" in configs[0].with_suffix(".0.log").read_text()


def test_a_process_that_dies_does_not_leave_the_others_waiting(
    fork_server: ForkServer, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(stage1={"epochs": 100, "batch_size": 3, "learning_rate": 0.001})
    port = free_port()
    pids = [start(fork_server, config, rank, 2, port) for rank in (0, 1)]
    log = config.with_suffix(".0.log")
    wait_for(lambda: log.is_file() and "stage1" in log.read_text())
    os.kill(pids[1], signal.SIGKILL)
    assert [fork_server.wait(pid) for pid in pids] == [1, -signal.SIGKILL]
    assert not (tmp_path / "bundle").exists()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_passes_are_shared_by_cost() -> None:
    assert shares([9, 5, 4, 1, 1], 2, float) == [[9, 1], [5, 4, 1]]
    assert shares([2, 3], 1, float) == [[2, 3]]  # in the order given
    assert shares([3], 3, float) == [[3], [], []]


def test_gradients_travel_in_buckets_of_one_dtype() -> None:
    sizes = [[tensor.numel() for tensor in bucket] for bucket in buckets([torch.zeros(n) for n in (2, 2, 9, 1, 3)], 16)]
    assert sizes == [[2, 2], [9], [1, 3]]
    mixed = [torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)]
    assert [len(bucket) for bucket in buckets(mixed, 1000)] == [1, 1]
