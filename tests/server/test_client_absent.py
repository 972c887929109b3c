"""Where every client is wanted, one that is missing fails its test."""

from __future__ import annotations

import pytest
from client_absent import absent


def test_skipped_or_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEET_REQUIRE_CLIENTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no node"):
        absent("no node")
    monkeypatch.setenv("MEET_REQUIRE_CLIENTS", "1")
    with pytest.raises(pytest.fail.Exception, match="no node"):
        absent("no node")
