"""Every command that the documentation shows is one: programs, options, targets and files are there.

`meet` is parsed by its own parser, with configurations and overrides read where their file is in the repository.
Engine arguments, `vllm serve` and `curl` are in `tests/server/test_documented_requests.py`; which test runs a command
is in `run_by.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import yaml
from documented import ROOT, Command, commands, inline_commands
from ray_arguments import BUILDER, check_arguments
from run_by import LONG, NOT_RUN, README, REQUESTS, RULES, SECONDS, STOCK, reason_not_to_run, run_by

from meet_cli.arguments import split_arguments
from meet_cli.main import cli
from meet_server.settings import read_settings
from meet_training.config import load_config
from meet_training.data.generate_config import load_generate_config
from meet_training.evaluation.evaluation_config import load_evaluation_config
from meet_training.rivals.compare_config import load_compare_config

ELSEWHERE = ("curl", "vllm")  # in tests/server/test_documented_requests.py
ASKING = {SECONDS, REQUESTS, README, LONG, STOCK}  # the others run a page, an installation or all that CI does
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.place)
def test_it_is_a_command(command: Command) -> None:
    program, *rest = command.words
    assert program in {*CHECKS, *ELSEWHERE}, f"{command.place}: no test knows this program"
    if program in CHECKS:
        CHECKS[program](rest)
    for word in rest:
        if re.match(r"(examples|deploy|docs|tests|requirements)/", word):
            assert (ROOT / word).exists(), f"{command.place}: there is no {word}"


@pytest.mark.parametrize("command", inline_commands(), ids=lambda command: command.place)
def test_one_within_a_sentence_has_only_options_that_there_are(command: Command) -> None:
    program, *rest = command.words
    if program == "make":
        check_make(rest)
        return
    found, _, rest = find(rest)
    known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    rest = rest[: rest.index("--")] if "--" in rest else rest
    takes_fields = found.context_settings.get("ignore_unknown_options", False)
    given = {word.partition("=")[0] for word in rest if word.startswith("-")}
    assert {name for name in given if not takes_fields or "." not in name} <= {*known, "--help", "--output"}


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.place)
def test_a_test_runs_it(command: Command) -> None:
    """Or it is said why none can."""
    test = run_by(command)
    assert (test is None) == (reason_not_to_run(command) is not None), f"{command.place}: no test runs {command.text}"


def test_who_runs_what_is_true() -> None:
    """The tests are there; each reason is of a command that is there; `run_by` is what those tests ask."""
    for test, _ in RULES:
        assert (ROOT / test).is_file()
    texts = [command.text.strip() for command in commands()]
    assert all(any(re.match(pattern, text) for text in texts) for pattern in NOT_RUN)
    assert all("commands_run_by(" in (ROOT / test).read_text() for test in ASKING)


def test_there_is_something_to_check() -> None:
    assert len(commands()) > 50
    assert len(inline_commands()) > 30
    assert {"meet", "make", "curl", "vllm", "docker", "kubectl", "torchrun"} <= {c.words[0] for c in commands()}


def find(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The subcommand, its context, and what is left of the words."""
    command: click.Command = cli
    context = click.Context(cli, info_name="meet")
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        below = command.get_command(context, rest[0])
        assert below is not None, f"meet has no {rest[0]}"
        command, rest = below, rest[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    return command, context, rest


def check_meet(words: list[str]) -> None:
    """The command takes these words. Files of its own that are no part of the repository need not be there."""
    command, context, rest = find(words)
    own = rest[: rest.index("--")] if "--" in rest else rest
    with files_may_be_missing(command):
        given = command.make_context(command.name, [*own], parent=context.parent).params
    check_files(str(command.name), given)


@contextmanager
def files_may_be_missing(command: click.Command) -> Iterator[None]:
    """The command takes the name of any file, there or not, as long as the block lasts."""
    needed = [p.type for p in command.params if isinstance(p.type, click.Path) and p.type.exists]
    for kind in needed:
        kind.exists = False
    try:
        yield
    finally:
        for kind in needed:
            kind.exists = True


def check_files(name: str, given: dict[str, object]) -> None:
    """Configurations of the repository, with what the command line sets in them, are read."""
    if name in ("train", "compare"):
        path, overrides = split_arguments(given["arguments"], what="CONFIG.yaml")  # type: ignore[arg-type]
        load = load_config if name == "train" else load_compare_config
        if Path(path).is_file():
            load(Path(path), overrides)
        else:
            load(anything(name), overrides)
    elif name == "generate" and Path(str(given["config"])).is_file():
        load_generate_config(Path(str(given["config"])))
    elif name == "eval" and given["config"] and Path(str(given["config"])).is_file():
        load_evaluation_config(Path(str(given["config"])))
    elif name == "serve":
        read_settings(None, given["overrides"], {"bundle": given["bundle"]})  # type: ignore[arg-type]


def anything(name: str) -> Path:
    """A configuration to set fields in, where the page's own is the reader's."""
    return ROOT / "examples" / ("demo/train.yaml" if name == "train" else "compare/demo.yaml")


def check_make(words: list[str]) -> None:
    for word in words:
        name, equals, _ = word.partition("=")
        if equals:
            assert re.search(rf"\$\({name}[):]", MAKEFILE), f"the Makefile reads no {name}"
        else:
            assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE), f"make has no target {name}"


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    assert given.module
    assert given.training_script == "meet_cli"
    check_meet(given.training_script_args)


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words[1:])
    assert (words[0], given.module, given.training_script) == ("launch", True, "meet_cli")
    check_meet(given.training_script_args)


def check_docker(words: list[str]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    if words[0] == "build":
        assert words[words.index("--target") + 1] in stages
    if words[0] == "compose":
        files = [ROOT / word for word in words if word.endswith(".yaml")]
        assert files
        assert all(file.is_file() for file in files)


def check_kubectl(words: list[str]) -> None:
    folder = ROOT / "deploy" / "kubernetes"
    manifests = [yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")]
    objects = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in manifests if "metadata" in one}
    for word in words:
        if re.fullmatch(r"(deployment|service)/\S+", word):
            assert word in objects
    if "secret" in words:
        assert f"secretName: {words[words.index('generic') + 1]}" in (folder / "deployment.yaml").read_text()


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    projects = [
        tomllib.loads(path.read_text())["project"]
        for path in (ROOT / "pyproject.toml", ROOT / "clients" / "python" / "pyproject.toml")
    ]
    extras = {project["name"]: set(project.get("optional-dependencies", {})) for project in projects}
    for word in words[1:]:
        name, _, wanted = word.removesuffix("]").partition("[")
        assert set(filter(None, wanted.split(","))) <= extras[name]


def check_serve(words: list[str]) -> None:
    assert words[:2] == ["run", BUILDER]
    check_arguments(dict(word.split("=", 1) for word in words[2:]))


def check_python(words: list[str]) -> None:
    subprocess.run([sys.executable, words[0], "--help"], check=True, capture_output=True)


def check_files_only(words: list[str]) -> None:
    """`cp`, `head`: the files are checked as those of every command are; what they do, by the tutorial's test."""
    assert words


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "meet": check_meet,
    "make": check_make,
    "torchrun": check_torchrun,
    "accelerate": check_accelerate,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "pip": check_pip,
    "python": check_python,
    "serve": check_serve,
    "cp": check_files_only,
    "head": check_files_only,
}
