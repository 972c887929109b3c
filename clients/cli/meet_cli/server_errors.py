"""What goes wrong between a command and a server that it asks, as one line each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from meet_cli.errors import CommandError

if TYPE_CHECKING:
    from openai import APIStatusError


@contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Turns errors of meet-client and of the `openai` SDK, which talk to `url` in the block, into CommandErrors."""
    import openai

    # Releases of the SDK before 3 let errors of a stream that breaks off through as httpx has them.
    broken: tuple[type[Exception], ...] = (openai.APIConnectionError, *_of_httpx("TransportError"))
    try:
        yield
    except openai.APITimeoutError:
        raise CommandError(f"{url} did not answer in time") from None
    except broken as error:
        reason = error.__cause__ or error
        raise CommandError(f"the connection to {url} failed ({reason}); is `meet serve` running?") from None
    except openai.APIStatusError as error:
        raise CommandError(f"{url} answered {error.status_code}: {_message(error)}") from None
    except _of_httpx("InvalidURL") as error:
        raise CommandError(f"{url} is no address of a server: {error}") from None
    except json.JSONDecodeError:
        raise CommandError(f"{url} answered no JSON: is it an OpenAI-compatible server?") from None
    except (openai.OpenAIError, ValueError) as error:
        raise CommandError(f"{url}: {error}") from None


def _message(error: APIStatusError) -> str:
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and body.get("message") else str(error.message)


def _of_httpx(error: str) -> tuple[type[Exception], ...]:
    """The class of that name, of whichever httpx the SDK sends with."""
    found: list[type[Exception]] = []
    for name in ("httpx2", "httpx"):
        with suppress(ImportError):
            found.append(getattr(importlib.import_module(name), error))
    return tuple(found)
