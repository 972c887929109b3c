"""Somebody else's chat page, Gradio's, in a real browser on the real server: a preference is picked as a model."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_absent import absent
from running_server import Server

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "clients" / "gradio_chat.py"
PYTHON = Path(os.environ.get("MEET_CLIENTS", ROOT / ".clients")) / "chat-page" / "bin" / "python"


@pytest.fixture
def chat_page(server: Server, tmp_path: Path) -> Iterator[str]:
    """Address of the example, as its readers start it."""
    if not PYTHON.is_file():
        absent("needs gradio: `make clients`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MEET_URL": server.url, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment |= {"GRADIO_TEMP_DIR": str(tmp_path)}
    said = tmp_path / "said"
    with said.open("wb") as out:
        process = subprocess.Popen([PYTHON, EXAMPLE], env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not answers(url):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def num_concise(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    counts = [float(line.split()[-1]) for line in lines if line.startswith("meet_requests_total{")
              and 'preference="concise"' in line and 'outcome="ok"' in line]  # fmt: skip
    return sum(counts)


def test_a_preference_is_picked_as_a_model(server: Server, chat_page: str, browser: Any) -> None:
    before = num_concise(server)
    context = browser.new_context(locale="en")
    page = context.new_page()
    # What it would fetch from elsewhere (fonts) is not needed.
    page.route(lambda url: not url.startswith(chat_page), lambda route: route.abort())
    page.goto(chat_page)
    [model] = [each["id"] for each in httpx.get(f"{server.url}/v1/models").json()["data"] if ":" not in each["id"]]
    page.get_by_role("tab", name=f"{model}:concise").click()
    message = page.get_by_role("textbox").locator("visible=true")
    message.fill("What is rain?")
    message.press("Enter")
    page.get_by_text("What is rain?").locator("visible=true").wait_for()
    page.locator(".bot.message").locator("visible=true").wait_for()
    deadline = time.monotonic() + 60
    while num_concise(server) == before:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert num_concise(server) == before + 1
    context.close()
