"""The `meet` command: finds its subcommands, and turns what they raise into one line and an exit code.

A subcommand is an entry point of the group `meet.commands` that names a click command; another distribution
may add its own. Knows nothing of what a subcommand does, and imports none until it is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import click

from meet_cli.errors import CommandError, one_line
from meet_cli.processes import tells_mistakes

if TYPE_CHECKING:
    from meet_bundle.errors import MeetError

GROUP = "meet.commands"
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


class Commands(click.Group):
    """The group of every subcommand that an installed distribution offers."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of the subcommands, sorted; one that cannot be loaded is among them."""
        return sorted(_entry_points())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The subcommand, or one that says why it cannot be loaded, so that it does not break the others."""
        entry = _entry_points().get(cmd_name)
        return None if entry is None else _load(entry)


def _entry_points() -> dict[str, metadata.EntryPoint]:
    """Entry points by name. MEET's own keep their names; of two others with one name the first is taken."""
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=GROUP):
        known = found.setdefault(entry.name, entry)
        if known is not entry and _is_own(entry) and not _is_own(known):
            found[entry.name] = entry
    return found


def _is_own(entry: metadata.EntryPoint) -> bool:
    return entry.module.startswith("meet_cli.")


def _load(entry: metadata.EntryPoint) -> click.Command:
    try:
        command = entry.load()
    # Somebody else's module runs here and may raise anything; `meet` goes on without it.
    except Exception as error:  # noqa: BLE001
        return _unusable(entry, f"{type(error).__name__}: {error}")
    if not isinstance(command, click.Command):
        return _unusable(entry, f"{entry.value} is no click command")
    return command


def _unusable(entry: metadata.EntryPoint, reason: str) -> click.Command:
    source = entry.dist.name if entry.dist is not None else entry.value
    problem = one_line(f"the command {entry.name!r} of {source} cannot be loaded: {reason}")

    def refuse() -> None:
        raise CommandError(problem)

    return click.Command(
        entry.name,
        callback=refuse,
        short_help=f"(cannot be loaded, from {source})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )


def _version() -> str:
    try:
        return metadata.version("meet")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"meet {_version()}")
        ctx.exit()


@click.command(cls=Commands, epilog="Example: meet demo --once", invoke_without_command=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """One language model that answers in the ways you prefer, chosen per request."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(command: click.Command, args: Sequence[str] | None = None, *, name: str = "meet") -> int:
    """Runs a command and returns its exit code: 2 for a mistake of the user's, 130 for Ctrl-C.

    `args` are those of the process where none are given. Mistakes are told on one line of stderr.
    """
    try:
        result = command.main(None if args is None else list(args), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _tell(_worded(error), error)
        return EXIT_MISTAKE
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except _mistakes() as error:
        _tell(str(error), error)
        return EXIT_MISTAKE
    return result if isinstance(result, int) else 0


def main() -> None:
    """The entry point of the `meet` script."""
    sys.exit(run(cli))


def _mistakes() -> type[MeetError]:
    # Evaluated only once something was raised: importing the bundle format would slow every `--help`.
    from meet_bundle.errors import MeetError

    return MeetError


def _worded(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{message.rstrip('.')} (see `{error.ctx.command_path} --help`)"
    return message


def _tell(message: str, error: BaseException) -> None:
    if not tells_mistakes():
        return
    for note in getattr(error, "__notes__", ()):
        click.echo(note, err=True)
    click.echo(f"meet: error: {one_line(message)}", err=True)


def _silence_stdout() -> None:
    """Keeps the interpreter from complaining about the broken pipe once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
