"""The paths of vLLM's app and of our own, by who may ask them. Whatever is in no list is an admin's to change."""

from __future__ import annotations

from starlette.types import Scope

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
GENERATING = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
BATCH, SCORING, DECISIONS = f"{CHAT}/batch", "/generative_scoring", "/v1/systemone"
INVOCATIONS, TOKENS = "/invocations", "/inference/v1/generate"
GENERATING_TOO = frozenset({BATCH, SCORING, DECISIONS, INVOCATIONS, TOKENS, "/cohere/v2/chat"})
"""vLLM's other routes that end in the engine. A preference is applied there too; keys of some alone are not taken."""
ASKING = GENERATING | GENERATING_TOO
PREFERENCES = "/v1/preferences"

PAGE, PAGE_FILES = "/", ("/playground/page.js", "/playground/page.css")

OPEN = frozenset({"/health", "/health/live", "/health/ready", "/ping", PAGE, *PAGE_FILES})
"""Probes of the machinery round the server, and the page, which tell nothing. No key is needed."""

READING = frozenset({"GET", "HEAD", "OPTIONS"})

_USERS = ("/v1/", "/v2/", "/cohere/")
_USERS_EXACTLY = frozenset(
    {
        "/tokenize",
        "/detokenize",
        INVOCATIONS,
        TOKENS,  # and not `abort_requests` beside it, which ends anybody's
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/generative_scoring",
    }
)
_ADMINS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})


def path_of(scope: Scope) -> str:
    """The path as routes are named."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def brings_body(method: str, path: str) -> bool:
    """Whether a request may have a body that matters. Of what is open none is read: no key was shown for it."""
    return method not in READING and path not in OPEN


def is_admins(method: str, path: str) -> bool:
    """Whether it changes the server: its preferences, or the engine through one of vLLM's own routes."""
    if method in READING:
        return False
    if path in _ADMINS or is_preference(path):
        return True
    return not (path in _USERS_EXACTLY or path.startswith(_USERS))


def is_preference(path: str) -> bool:
    """Whether it is one of `/v1/preferences` or below."""
    return path == PREFERENCES or path.startswith(PREFERENCES + "/")
