"""Every example in examples/clients, run as its readers run it, against the real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from client_absent import absent
from running_server import Server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "clients"
PYTHON = Path(os.environ.get("MEET_CLIENTS", ROOT / ".clients")) / "bin" / "python"
# What each example says it did, in order.
SAYS = {
    "anthropic_messages.py": ("field: concise=1; version=", "model: detailed=1;", "effort: concise=1;", "stream: "),
    "langchain_chat.py": ("field: ", "bound: ", "stream: "),
    "litellm_completion.py": ("field: ", "stream: "),
    "llama_index_chat.py": ("field: ", "stream: "),
    "openai_node.mjs": ("field: concise=0.7,detailed=-0.5; version=", "stream: "),
    "openai_python.py": (
        "sync: concise=0.7,detailed=-0.5; version=", "stream: ", "each: concise=1", "each: detailed=1", "each: none",
        "responses: ", "async: ",
    ),
    "vercel_ai.mjs": ("field: concise=0.7; version=", "stream: "),
}  # fmt: skip


PAGES = {"gradio_chat.py"}  # these go on till they are stopped: test_chat_page.py


def test_every_example_is_run() -> None:
    assert sorted({*SAYS, *PAGES}) == sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".mjs"))


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, server: Server) -> None:
    if name.endswith(".py"):
        interpreter, there = str(PYTHON), PYTHON.is_file()
    else:
        node = shutil.which("node")
        interpreter, there = node or "node", node is not None and (FOLDER / "node_modules").is_dir()
    if not there:
        absent("its client is not installed: `make clients`")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [interpreter, name],
        cwd=FOLDER,
        env=environment | {"MEET_URL": server.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    at = 0
    for words in SAYS[name]:
        found = said.find(words, at)
        assert found >= 0, f"{words!r} is missing from: {said}"
        at = found + len(words)
