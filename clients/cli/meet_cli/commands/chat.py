"""`meet chat`: asks a MEET server, once or in turns, through meet-client. Knows no engine and no bundle."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from meet_cli.errors import CommandError, harmless
from meet_cli.server_errors import errors_of

if TYPE_CHECKING:
    from meet_client import MeetClient

DEFAULT_URL = "http://127.0.0.1:8000"


@click.command(
    short_help="Ask a server, once or in turns.",
    epilog='Example: meet chat -p concise "Why is the sky blue?"',
)
@click.option(
    "--url", default=DEFAULT_URL, envvar="MEET_URL", show_default=True, help="Address of the server, or else $MEET_URL."
)
@click.option(
    "-p",
    "--preference",
    "words",
    metavar="WORDS",
    help="concise, or concise=0.7,formal=0.5, or none for an uncontrolled reply; else the server's default.",
)
@click.option("--api-key", envvar="MEET_API_KEY", help="Key of the server, better given as $MEET_API_KEY.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Limit of a reply, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Of sampling; 0 is greedy.")
@click.argument("message", required=False)
def chat(
    url: str,
    words: str | None,
    api_key: str | None,
    max_tokens: int | None,
    temperature: float | None,
    message: str | None,
) -> None:
    """Ask MESSAGE and show the reply as it is written; without MESSAGE, in turns until Ctrl-D.

    The reply goes to stdout; what was applied goes to stderr. MESSAGE may be piped in.
    """
    from meet_client import MeetClient

    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    options = {name: value for name, value in options.items() if value is not None}
    if words is not None:
        if not (words.isascii() and words.isprintable()):
            raise click.UsageError(f"--preference {words!a}: a label is of ASCII letters, digits and `_.-` alone")
        # The header has the grammar of `-p`, so the server reads it, and says what is wrong with it.
        options["extra_headers"] = {"X-Meet-Preference": words}
    with errors_of(url), MeetClient(url, api_key, max_retries=0) as client:
        if message is not None:
            _ask(client, [{"role": "user", "content": message}], options)
        elif on_terminal():
            _in_turns(client, options)
        elif piped := _piped():
            _ask(client, [{"role": "user", "content": piped}], options)
        else:
            raise click.UsageError("no MESSAGE was given and none was piped in")


def on_terminal() -> bool:
    """Does somebody type, or is stdin a pipe?"""
    return sys.stdin.isatty()


def _piped() -> str:
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise CommandError(f"what was piped in is no {error.encoding} text: {error.reason}") from None


def _in_turns(client: MeetClient, options: dict[str, Any]) -> None:
    messages: list[dict[str, str]] = []
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if message:
            messages.append({"role": "user", "content": message})
            messages.append({"role": "assistant", "content": _ask(client, messages, options)})


def _ask(client: MeetClient, messages: list[dict[str, str]], options: dict[str, Any]) -> str:
    """Shows the reply as it comes, and returns it."""
    try:
        messages[-1]["content"].encode()
    except UnicodeEncodeError:  # bytes that the terminal's encoding does not have come as halves of surrogate pairs
        raise CommandError(f"MESSAGE is no {sys.stdin.encoding} text, and cannot be sent") from None
    pieces = []
    with client.stream(messages, **options) as stream:
        for piece in stream:
            pieces.append(piece)
            # A model may be talked into what renames a window, fills a clipboard or hides what it wrote.
            click.echo(harmless(piece) if sys.stdout.isatty() else piece, nl=False)
    click.echo()
    applied = "this is no MEET server: nothing was applied" if stream.applied is None else stream.applied
    click.secho(f"[{applied}]", err=True, dim=True)
    return "".join(pieces)
