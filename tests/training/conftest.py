"""Training tests run tiny models: one thread is faster than two that wait for each other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from .fork_server import ForkServer

if TYPE_CHECKING:
    from meet_training.config import TrainConfig


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts `meet` in processes of their own, in milliseconds."""
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def endpoint_behind_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of an endpoint on this machine that says "Tin is a metal.", where the environment names a dead proxy."""
    message = {"role": "assistant", "content": "Tin is a metal."}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data.encode())

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("HTTP_PROXY", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def turns_end_otherwise(tiny_base: Path, tmp_path: Path) -> Path:
    """A base whose template ends turns with a token that is not the tokenizer's end of sequence, as Gemma's and Phi's
    do: its generation configuration alone says that replies end with it."""
    folder = shutil.copytree(tiny_base, tmp_path / "turns-end-otherwise")
    for name, old, new in (
        ("tokenizer_config.json", '"eos_token": "<|im_end|>"', '"eos_token": "<|pad|>"'),
        ("generation_config.json", '"eos_token_id": 2', '"eos_token_id": [0, 2]'),
    ):
        content = (folder / name).read_text()
        assert old in content
        (folder / name).write_text(content.replace(old, new))
    return folder


@pytest.fixture
def make_config(tiny_base: Path, preference_file: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes a configuration of both stages on the tiny model, with other fields where they are given."""
    from meet_training.config import TrainConfig

    def make(**more: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "name": "tiny",
            "base": str(tiny_base),
            "output": tmp_path / "bundle",
            "data": [{"path": preference_file}],
            "preferences": {
                "short": {"axis": "length", "opposite": "long", "instruction": "Be brief."},
                "long": {"axis": "length", "opposite": "short"},
            },
            "precision": "float32",
            "stage1": {"epochs": 2, "batch_size": 2, "learning_rate": 0.02},
            "stage2": {"epochs": 1, "batch_size": 2, "learning_rate": 0.001},
            "tokens_per_pass": 256,
        }
        return TrainConfig.model_validate(fields | more)

    return make
