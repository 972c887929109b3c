"""The TypeScript client's own tests, by node's test runner, against the real server."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from client_absent import absent
from running_server import Server

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"


def test_the_typescript_client(server: Server) -> None:
    node = shutil.which("node")
    if node is None or not (CLIENT / "dist" / "index.js").is_file():
        absent("needs node and a built clients/typescript: `make clients`")
    done = subprocess.run(
        [node, "--test", *map(str, sorted((CLIENT / "test").glob("*.test.mjs")))],
        cwd=CLIENT,
        env=os.environ | {"MEET_URL": server.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 8" in done.stdout


def test_the_types_of_the_typescript_client() -> None:
    compiler = CLIENT / "node_modules" / ".bin" / "tsc"
    if not compiler.is_file() or not (CLIENT / "dist" / "index.d.ts").is_file():
        absent("needs node and a built clients/typescript: `make clients`")
    options = [
        "--ignoreConfig",
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--types",
        "node",
    ]
    done = subprocess.run(
        [compiler, *options, "test/types.ts"], cwd=CLIENT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout
