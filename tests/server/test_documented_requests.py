"""What the documentation sends to a server, sent to the tests' server; and arguments of the engine, parsed by it.

The pages speak of the demo's bundle. The tests' server has another name and two of its preferences, so names are put in
their place; nothing else is changed, but that replies are short.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from documented import ROOT, Block, Command, blocks, commands
from run_by import REQUESTS, commands_run_by
from running_server import Server

from meet_cli.main import cli, run
from meet_server.engine import releases

ADDRESS = re.compile(r"http://(?:localhost|127\.0\.0\.1):8000")
NAMES = {"smollm2-meet": "tiny", "help-desk": "tiny", "bulleted": "detailed", "prose": "detailed", "steps": "concise",
         "plain": "detailed", "formal": "detailed"}  # fmt: skip
MAX_TOKENS = 8
CURLS = [command for command in commands_run_by(REQUESTS) if command.words[0] == "curl"]
CHATS = [command for command in commands_run_by(REQUESTS) if command.words[0] == "meet"]
PYTHON = [block for block in blocks("python") if not block.includes and block.page != "docs/PYTHON.md"]
# Options of curl that pages use, and whether they take a value.
OPTIONS = {"-s": False, "-i": False, "-H": True, "-d": True, "-X": True}


def put_in_place(text: str, url: str) -> str:
    """The text with the names of the tests' server."""
    text = ADDRESS.sub(url, text)
    return re.sub(r"[\w-]+", lambda word: NAMES.get(word[0], word[0]), text)


def request_of(command: Command, url: str) -> httpx.Request:
    """What curl would send."""
    words = command.words[1:]
    given: dict[str, list[str]] = {"url": []}
    while words:
        word = words.pop(0)
        if word in OPTIONS:
            given.setdefault(word, []).append(words.pop(0) if OPTIONS[word] else "")
        else:
            assert not word.startswith("-"), f"{command.place}: this test knows no {word} of curl"
            given["url"].append(word)
    [address] = given["url"]
    assert ADDRESS.match(address), f"{command.place}: {address} is not where the pages' server listens"
    headers = [tuple(put_in_place(line, url).split(": ", 1)) for line in given.get("-H", ())]
    body = "".join(given.get("-d", ()))
    content = shortened(put_in_place(body, url)) if body else None
    method = given.get("-X", ["POST" if body else "GET"])[0]
    return httpx.Request(method, put_in_place(address, url), headers=headers, content=content)


def shortened(body: str) -> str:
    """The same request for a few tokens. The body must be JSON, as curl is told that it is."""
    request: dict[str, Any] = json.loads(body)
    return json.dumps({**request, "max_tokens": MAX_TOKENS} if "messages" in request else request)


@pytest.mark.parametrize("command", CURLS, ids=lambda command: command.place)
def test_curl(command: Command, server: Server) -> None:
    request = request_of(command, server.url)
    with httpx.Client(timeout=120) as client:
        answer = client.send(request)
    assert answer.status_code == 200, answer.text
    asked = json.loads(request.content) if request.content else {}
    if asked.get("messages"):
        assert "content-type" in request.headers
        check_reply(asked, request.headers, answer)


def check_reply(asked: Mapping[str, Any], headers: Mapping[str, str], answer: httpx.Response) -> None:
    """What was asked for was applied, and another preference would have given another reply."""
    applied = answer.headers["x-meet-preference"]
    if "preferences" in asked:
        assert len(answer.json()["choices"]) == len(asked["preferences"])
        return
    if isinstance(asked.get("preference"), str):
        assert applied.startswith(f"{asked['preference']}=1;")
    if "x-meet-preference" in headers:
        assert applied.partition(";")[0] == headers["x-meet-preference"]


def test_the_readmes_first_screen_changes_how_it_answers(server: Server) -> None:
    """Three commands: two of make's, which are tested elsewhere, and a curl that another preference can be put into."""
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    [first] = [command for command in CURLS if command.page == "README.md"]
    assert first.text.splitlines()[0] in screen
    assert re.findall(r"^make (\w+)", screen, re.MULTILINE) == ["demo", "test"]
    request = request_of(first, server.url)
    replies = {}
    with httpx.Client(timeout=120) as client:
        for preference in ("concise", "detailed", {"concise": 0.7, "detailed": 0.5}, None):
            body = {**json.loads(request.content), "preference": preference, "temperature": 0, "ignore_eos": True}
            answer = client.post(request.url, json=body)
            replies[answer.headers["x-meet-preference"].partition(";")[0]] = answer.json()["choices"][0]["message"]
    assert list(replies) == ["concise=1", "detailed=1", "concise=0.7,detailed=0.5", "none"]
    # The tests' random model says nothing that can be read under two of them.
    assert len({reply["content"] for reply in replies.values()}) >= 3


@pytest.mark.parametrize("command", CHATS, ids=lambda command: command.place)
def test_chat(command: Command, server: Server) -> None:
    words = [put_in_place(word, server.url) for word in command.words[1:]]
    with CliRunner().isolation() as streams:
        code = run(cli, [*words, "--url", server.url, "--max-tokens", str(MAX_TOKENS)])
        out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
    assert code == 0, err
    assert out.strip()


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python(block: Block, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = put_in_place(block.text, server.url)
    scope: dict[str, Any] = {"__name__": block.place}
    exec(compile(code, block.place, "exec"), scope)
    scope["client"].close()
    capsys.readouterr()


@pytest.mark.parametrize("block", blocks("ts"), ids=lambda block: block.place)
def test_typescript(block: Block, server: Server) -> None:
    client, node = ROOT / "clients" / "typescript", shutil.which("node")
    if node is None or not (client / "dist" / "index.js").is_file():
        pytest.skip("needs node and a built clients/typescript: `make clients`")
    done = subprocess.run(
        [node, "--input-type=module", "--eval", put_in_place(block.text, server.url)],
        cwd=client, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def engine_arguments() -> list[Command]:
    """Commands that hand arguments to the engine, behind `--` or as `vllm serve`."""
    return [c for c in commands() if c.words[0] == "vllm" or (c.words[0] == "meet" and "--" in c.words)]


@pytest.mark.parametrize("command", engine_arguments(), ids=lambda command: command.place)
def test_the_engine_knows_the_arguments(command: Command) -> None:
    words = command.words
    arguments = words[2:] if words[0] == "vllm" else words[words.index("--") + 1 :]
    if words[0] == "vllm":
        assert words[1] == "serve"
        arguments = ["--model", *arguments]
    releases.parse_arguments(arguments)


def test_there_is_something_to_send() -> None:
    assert len(CURLS) >= 6
    assert len(CHATS) >= 5
    assert {block.page for block in PYTHON} >= {"docs/ASKING.md", "clients/python/README.md"}
    assert len(engine_arguments()) >= 5
