"""The one table from error codes to HTTP statuses, and OpenAI's error body. Nothing else knows statuses."""

from __future__ import annotations

import json

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from meet_server.errors import RequestError

STATUSES: dict[str, int] = {
    "invalid_preference": 400,
    "unknown_preference": 400,
    "conflicting_preferences": 400,
    "strength_out_of_range": 400,
    "unsupported_mix": 400,
    "unsupported_strength": 400,
    "invalid_body": 400,
    "too_many_replies": 400,
    "invalid_api_key": 401,
    "admin_key_required": 403,
    "origin_not_allowed": 403,
    "preference_not_allowed": 403,
    "route_not_allowed": 403,
    "invalid_upload": 400,
    "invalid_label": 400,
    "control_refused": 400,
    "default_preference": 400,
    "last_preference": 400,
    "preference_not_found": 404,
    "revision_not_found": 404,
    "model_not_found": 404,
    "preference_exists": 409,
    "label_taken": 409,
    "no_room": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "too_many_requests": 429,
    "overloaded": 429,
    "headers_too_large": 431,
    "registry_failed": 500,
    "engine_dead": 503,
    "draining": 503,
    "replica_lost": 503,
    "waited_too_long": 503,
    "deadline_exceeded": 504,
}


def error_body(error: RequestError) -> dict[str, dict[str, str | None]]:
    """OpenAI's `{"error": {"message", "type", "param", "code"}}`."""
    kind = "invalid_request_error" if STATUSES[error.code] < 500 else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


class ErrorResponse(JSONResponse):
    """An error of ours, which the app counts as it sends it: its state says how (`refused`), if it does."""

    code = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "app" in scope and (refused := getattr(scope["app"].state, "refused", None)) is not None:
            refused(self.code)
        await super().__call__(scope, receive, send)


def error_response(error: RequestError) -> ErrorResponse:
    """The reply to a request that cannot be served as asked."""
    status = STATUSES[error.code]
    headers = {"www-authenticate": "Bearer"} if status == 401 else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    response = ErrorResponse(error_body(error), status_code=status, headers=headers)
    response.code = error.code
    return response


async def end_with(error: RequestError, began: Message | None, scope: Scope, receive: Receive, send: Send) -> bool:
    """Ends a reply of which `began` was sent, if anything: as an error, or as a stream's last event.

    False where neither can be, so that nothing is left but to cut it off.
    """
    if began is None:
        await error_response(error)(scope, receive, send)
    elif Headers(raw=began["headers"]).get("content-type", "").startswith("text/event-stream"):
        event = b"data: " + json.dumps(error_body(error)).encode() + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": event})
    else:
        return False
    return True
