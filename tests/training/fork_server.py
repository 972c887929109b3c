"""Runs `meet` in forks of one process that has imported everything, so that a start takes milliseconds.

Run as a program: reads one JSON request a line, answers each with one line. What is forked is a process of its own
that can be killed as any other. The parent never computes anything, so that no thread of torch's is lost in a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# What a training run imports sooner or later; transformers and torch import most of themselves only when asked.
IMPORTED = (
    "accelerate",
    "peft",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.utils.checkpoint",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "meet_cli.commands.train",
    "meet_training.run",
)


class ForkServer:
    """The test's side: starts `meet` processes and learns how they ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask({})  # answers once everything is imported

    def start(self, arguments: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> int:
        """Starts `meet ARGUMENTS`, its output appended to `log`; returns the process's id."""
        return int(self._ask({"start": list(arguments), "log": str(log), "env": dict(env or {})}))

    def start_script(self, script: Path, arguments: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
        """The same for a Python file."""
        request = {"start": [str(script), *arguments], "log": str(log), "env": dict(env), "script": True}
        return int(self._ask(request))

    def ended(self, pid: int) -> int | None:
        """Exit code of a process, minus the signal where one ended it; None while it runs. Once ended, asked once."""
        code = self._ask({"ended": pid})
        return None if code is None else int(code)

    def wait(self, pid: int) -> int:
        """Exit code of a process, when it has ended."""
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    _import_everything()
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)  # noqa: T201


def _answer(request: dict[str, Any]) -> int | None:
    if "start" in request:
        pid = os.fork()
        if pid == 0:
            _become(request["start"], request["log"], request["env"], script=request.get("script", False))
        return pid
    if "ended" in request:
        pid, status = os.waitpid(request["ended"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None
    if "wait" in request:
        return os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    return None


def _become(arguments: list[str], log: str, env: dict[str, str], *, script: bool) -> None:
    """Turns the forked process into `meet ARGUMENTS` or `python ARGUMENTS`; does not return."""
    import torch

    from meet_cli.main import cli, run

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    torch.set_num_threads(1)
    # Whatever is raised is told here, and never goes back to the loop of the parent.
    code = 1
    try:
        if script:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        else:
            code = run(cli, arguments)
    finally:
        if error := sys.exc_info()[1]:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import_everything() -> None:
    for name in IMPORTED:
        importlib.import_module(name)


if __name__ == "__main__":
    serve()
