"""The `meet` command itself: which subcommands there are, and what becomes of what they raise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from meet_bundle import MeetError
from meet_cli.errors import CommandError
from meet_cli.main import run

OWN = ("bundle", "chat", "data", "demo", "eval", "serve", "train")
HEAVY = ("torch", "transformers", "vllm", "openai", "pydantic", "rich", "meet_bundle", "meet_client", "yaml")


def raising(error: BaseException) -> click.Command:
    def callback() -> None:
        raise error

    return click.Command("boom", callback=callback)


def test_help_lists_every_command(meet: Callable[..., Any]) -> None:
    outcome = meet("--help")
    assert outcome.exit_code == 0
    listed = [line.split()[0] for line in outcome.out.splitlines() if line.startswith("  ") and line.split()]
    assert set(OWN) <= set(listed)


def test_no_arguments_show_the_help(meet: Callable[..., Any]) -> None:
    assert meet().out == meet("--help").out


@pytest.mark.parametrize(
    "command",
    [
        (),
        *((name,) for name in OWN),
        ("bundle", "inspect"),
        ("bundle", "verify"),
        ("data", "generate"),
        ("data", "inspect"),
    ],
    ids=" ".join,
)
def test_every_help_shows_an_example(meet: Callable[..., Any], command: tuple[str, ...]) -> None:
    outcome = meet(*command, "--help")
    assert outcome.exit_code == 0
    assert "Example: meet " + " ".join(command) in " ".join(outcome.out.split())


def test_help_imports_nothing_heavy(installed: Path) -> None:
    code = (
        "import sys; from meet_cli.main import cli, run; code = run(cli, ['--help']);"
        f"found = [name for name in {HEAVY!r} if name in sys.modules];"
        "sys.exit(f'imported: {found}' if found else code)"
    )
    path = ":".join([str(installed), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(meet: Callable[..., Any]) -> None:
    outcome = meet("--version")
    assert outcome.exit_code == 0
    assert outcome.out.startswith("meet ")


def test_a_command_of_another_distribution_is_found(
    meet: Callable[..., Any], install: Callable[..., None], installed: Path
) -> None:
    (installed / "meet_extra_ok.py").write_text(
        "import click\n@click.command(short_help='greet')\ndef hello():\n    click.echo('hello')\n"
    )
    install("meet-extra", {"hello": "meet_extra_ok:hello"})
    assert "greet" in meet("--help").out
    assert meet("hello").out == "hello\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("this is no python", "SyntaxError"),
        ("hello = 1", "is no click command"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_command_breaks_no_other(
    meet: Callable[..., Any], install: Callable[..., None], installed: Path, source: str, reason: str
) -> None:
    sys.modules.pop("meet_extra_broken", None)
    (installed / "meet_extra_broken.py").write_text(source)
    install("meet-broken", {"hello": "meet_extra_broken:hello"})
    listed = meet("--help")
    assert listed.exit_code == 0
    assert "cannot be loaded, from meet-broken" in listed.out
    assert meet("bundle", "--help").exit_code == 0
    outcome = meet("hello", "--any", "argument")
    assert outcome.exit_code == 2
    assert outcome.err.startswith("meet: error: the command 'hello' of meet-broken cannot be loaded: ")
    assert reason in outcome.err
    assert outcome.err.count("\n") == 1


def test_another_distribution_cannot_take_the_name_of_an_own_command(
    meet: Callable[..., Any], install: Callable[..., None]
) -> None:
    install("a-thief", {"bundle": "os:getcwd"})
    assert "inspect" in meet("bundle", "--help").out


@pytest.mark.parametrize("args", [("nonsense",), ("--nonsense",), ("bundle",), ("bundle", "nonsense"), ("serve",)])
def test_mistakes_on_the_command_line_are_one_line(meet: Callable[..., Any], args: tuple[str, ...]) -> None:
    outcome = meet(*args)
    assert outcome.exit_code == 2
    if args != ("bundle",):  # a group on its own shows its help
        assert outcome.err.startswith("meet: error: ")
        assert outcome.err.count("\n") == 1


def test_errors_of_meet_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(MeetError("what\n  is wrong")), []) == 2
    assert capsys.readouterr().err == "meet: error: what is wrong\n"


def test_notes_of_an_error_stand_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = CommandError("it stopped")
    error.add_note("the log")
    assert run(raising(error), []) == 2
    assert capsys.readouterr().err == "the log\nmeet: error: it stopped\n"


def test_ctrl_c_exits_130() -> None:
    assert run(raising(KeyboardInterrupt()), []) == 130


def test_errors_that_are_nobodys_mistake_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), [])


def test_a_broken_pipe_is_quiet(installed: Path) -> None:
    code = (
        "import sys, click; from meet_cli.main import run\n"
        "command = click.Command('much', callback=lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
        "sys.exit(run(command, []))"
    )
    path = ":".join([str(installed), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1
