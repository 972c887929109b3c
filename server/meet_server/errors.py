"""What the server raises on purpose. Knows no HTTP: statuses are in `http/errors.py`.

meet_bundle.MeetError
+-- ServerError        the server cannot start or go on; the user can mend it; one line
    +-- EngineDied     the engine ended, or did not answer any more
    +-- RequestError   one request cannot be served as asked; has a code that clients can act on
"""

from __future__ import annotations

from meet_bundle import MeetError


class ServerError(MeetError):
    """The server cannot start or go on. The message says what is wrong and what would mend it."""


class EngineDied(ServerError):
    """The engine ended, or did not answer any more."""


class RequestError(ServerError):
    """One request asks for what cannot be done.

    `code` is for programs (`unknown_preference`), `param` names the field or header at fault, the
    message is for people. Where trying again later may help, `retry_after_s` says when.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
        self.message = message
        self.retry_after_s = retry_after_s
