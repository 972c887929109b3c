"""The reference of the HTTP interface: routes of our own from their OpenAPI, and what vLLM's routes take besides.

No engine is started and vLLM is not imported: the routers are put into an app whose parts are never called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from reference_tables import escaped, field_table, prose

from meet_server.http import several_preferences
from meet_server.http.errors import STATUSES
from meet_server.http.health import health_router
from meet_server.http.model_routes import model_router
from meet_server.http.paths import GENERATING, OPEN, PAGE, is_admins
from meet_server.http.preference_changes import PreferenceChange, change_router
from meet_server.http.preference_field import TAKING_SEVERAL, THEIR_FIELDS
from meet_server.http.preference_routes import PreferenceCard, preference_router
from meet_server.lifecycle import Lifecycle
from meet_server.preferences import words

INTRODUCTION = """# HTTP

Everything that vLLM's OpenAI-compatible server offers is served as vLLM has it; its own description of each route is at
`/docs` and `/openapi.json` of a running server. This page has what is added. [Asking](../ASKING.md) shows it in use.

## Asking for a preference

| route of vLLM's | fields of the body |
|---|---|
"""
VALUES = f"""
- `{words.FIELD}`: a label, a list of labels (at most {words.MAX_LABELS}), an object of strengths by label, or `null`
  for no control. On all of these routes the header `{words.HEADER}` (`concise`, `concise=0.7,formal=0.5`) and what
  stands behind a colon in `model` (`concise`, `concise+formal`) ask for the same; `{words.NO_CONTROL}` there is no
  control.
- `{several_preferences.FIELD}`: a list of 1 to {several_preferences.MAX_ENTRIES} such values, one choice for each.
- The fields of the APIs themselves mean what the bundle's manifest maps their values to, if any.
- Every reply that is no error says in `{words.HEADER}` what was applied, with the control's version.
"""


def http(header: str) -> str:
    """The page."""
    added = "\n".join(f"| `POST {route}` | {', '.join(f'`{name}`' for name in fields(route))} |" for route in routes())
    routes_of_ours = "\n".join(f"| `{at}` | {who} | {status} | {what} |" for at, who, status, what in operations())
    errors = "\n".join(f"| `{code}` | {status} |" for code, status in sorted(STATUSES.items()))
    models = "\n".join(
        f"\n### {model.__name__}\n\n{prose(model)}\n\n{field_table(model)}"
        for model in (PreferenceCard, PreferenceChange)
    )
    return (
        f"{header}{INTRODUCTION}{added}\n{VALUES}\n## Routes\n\n"
        "Where the server has keys, a key of the role that the table says is shown as `Authorization: Bearer KEY` or\n"
        "`x-api-key: KEY`; an admin's opens everything.\n\n"
        f"| route | key | status | what it does |\n|---|---|---|---|\n{routes_of_ours}\n"
        f"| `GET {PAGE}` | none | 200 | The playground. |\n\n"
        f"## Objects\n{models}\n\n## Errors\n\n"
        'The body is OpenAI\'s, `{"error": {"message", "type", "param", "code"}}`. What each code means is in\n'
        f"[Operating](../OPERATING.md).\n\n| code | status |\n|---|---|\n{errors}\n"
    )


def routes() -> list[str]:
    """vLLM's routes that take a preference."""
    return sorted(GENERATING)


def fields(route: str) -> Iterator[str]:
    """The fields of its body that ask for one."""
    yield words.FIELD
    if route in TAKING_SEVERAL:
        yield several_preferences.FIELD
    if route in THEIR_FIELDS:
        yield ".".join(THEIR_FIELDS[route])


def operations() -> Iterator[tuple[str, str, str, str]]:
    """Method and path, who may ask, the status of success, and what it does, of each route of ours."""
    described: Mapping[str, Mapping[str, Any]] = app().openapi()["paths"]
    for path, methods in sorted(described.items()):
        for method, operation in methods.items():
            who = "none" if path in OPEN else "admin" if is_admins(method.upper(), path) else "user"
            status = next(status for status in operation["responses"] if status.startswith("2"))
            yield f"{method.upper()} {path}", who, status, escaped(operation["description"])


def app() -> FastAPI:
    """Our routes, on nothing."""
    nothing: Any = None
    composed = FastAPI()
    composed.include_router(preference_router(nothing, nothing))
    composed.include_router(change_router(nothing, nothing, 0))
    composed.include_router(model_router(nothing))
    composed.include_router(health_router(nothing, Lifecycle()))
    return composed
