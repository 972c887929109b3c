"""What a test of somebody else's program does where that program is not installed."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(what: str) -> NoReturn:
    """Skips; fails where MEET_REQUIRE_CLIENTS says that nothing may be left out, as `make test-clients` does."""
    if os.environ.get("MEET_REQUIRE_CLIENTS"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
