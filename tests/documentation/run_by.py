"""Which test runs which command of the documentation, and what cannot be run where the tests are, with the reason.

A new command of a page finds its test here by what it is; where it finds none, `test_commands.py` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from documented import ROOT, Block, Command, blocks, commands, commands_of

CONTINUOUS = ".ci/run"
SECONDS = "tests/documentation/test_running.py"
REQUESTS = "tests/server/test_documented_requests.py"
TUTORIAL = "tests/end_to_end/test_tutorial.py"
README = "tests/end_to_end/test_readme.py"
LONG = "tests/end_to_end/test_long_commands.py"
STOCK = "tests/server/test_vllm_serve.py"
RAY = "tests/server/test_ray_serve.py"
RELEASE = "tests/test_release.py"

NOT_RUN = {
    r"docker ": "wants a Docker engine; `make test-image` builds the Dockerfile with buildah and asks the image",
    r"kubectl ": "wants a cluster; tests/test_deploy.py reads every manifest",
    r"MEET_ENGINE=cuda make setup": "wants an NVIDIA driver; tests/test_setup.py",
    r"make test-(slow|release)": "is what runs the long ones of these",
    r"serve run .* gpus=1": "wants GPUs; `make test-ray` runs the same application by `meet serve --ray`",
}
"""What is read and parsed only, by a pattern of its text, and what is run in its place."""

Rule = Callable[[Command], bool]


def starts(*words: str) -> Rule:
    return lambda command: command.words[: len(words)] == list(words)


def stands_in(page: str, then: Rule = lambda _: True) -> Rule:
    return lambda command: command.page == page and then(command)


def made_by_ci(command: Command) -> bool:
    """Targets that CI calls, or that what it calls needs."""
    called = set(re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    return command.words[0] == "make" and set(command.words[1:]) <= {*called, "setup", "clients"}


@cache
def in_transcripts() -> frozenset[Command]:
    """Commands that stand with what they print."""
    return frozenset(c for block in blocks("shell") if block.text.startswith("$ ") for c in commands_of(block))


def inspects_an_example(command: Command) -> bool:
    """Of data that the repository holds, whole."""
    is_there = starts("meet", "data", "inspect")(command) and (ROOT / command.words[3]).exists()
    return is_there and not command.words[3].startswith("examples/hub/")


RULES: list[tuple[str, Rule]] = [
    (TUTORIAL, stands_in("docs/TUTORIAL.md", lambda command: command.words[0] not in ("curl", "make"))),
    (README, stands_in("README.md", starts("make", "demo"))),
    (REQUESTS, starts("curl")),
    (REQUESTS, starts("meet", "chat")),
    (SECONDS, lambda command: command in in_transcripts()),
    (SECONDS, inspects_an_example),
    (SECONDS, starts("meet", "bundle")),
    (STOCK, starts("vllm", "serve")),
    (RAY, lambda command: starts("meet", "serve")(command) and "--ray" in command.words),
    (RELEASE, starts("pip", "install")),
    (CONTINUOUS, made_by_ci),
    (LONG, starts("make", "sbom")),
    (LONG, lambda command: command.words[0] in ("meet", "python", "torchrun", "accelerate")),
]


def run_by(command: Command) -> str | None:
    """The test that runs it, the first that claims it; None where none does."""
    if reason_not_to_run(command) is not None:
        return None
    return next((test for test, claims in RULES if claims(command)), None)


def reason_not_to_run(command: Command) -> str | None:
    return next((reason for text, reason in NOT_RUN.items() if re.match(text, command.text.strip())), None)


def commands_run_by(test: str) -> list[Command]:
    """What a test, given as a path from the root, has to run."""
    return [command for command in commands() if run_by(command) == test]


def blocks_run_by(test: str) -> list[Block]:
    """Blocks whose commands all are that test's."""
    return [block for block in blocks("shell") if {run_by(command) for command in commands_of(block)} == {test}]
