"""Every code that the server raises has a status, and the body is OpenAI's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import meet_server
from meet_server.errors import RequestError
from meet_server.http.errors import STATUSES, error_response

RAISED = re.compile(r'RequestError\(\s*"([a-z_]+)"')


def test_every_code_raised_has_a_status() -> None:
    source = "\n".join(p.read_text() for p in Path(meet_server.__path__[0]).rglob("*.py"))
    assert set(RAISED.findall(source)) == set(STATUSES)


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_body(code: str) -> None:
    response = error_response(RequestError(code, "message", param="preference"))
    assert response.status_code == STATUSES[code]
    error = json.loads(bytes(response.body))["error"]
    assert error == {
        "message": "message",
        "type": "invalid_request_error" if STATUSES[code] < 500 else "server_error",
        "param": "preference",
        "code": code,
    }
