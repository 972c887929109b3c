"""Keys from files and the environment: what is accepted, what is refused, and that no secret is told."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from meet_server.access.keyring import Keyring
from meet_server.errors import ServerError

SECRET, OTHER, THIRD = "sk-0123456789abcdef", "sk-other-9876543210", "sk-third-5555555555"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(file: Path, *keys: dict[str, Any]) -> Path:
    file.write_text(json.dumps({"keys": list(keys)}))
    return file


def test_environment_holds_several_of_each() -> None:
    keyring = Keyring(None, {"MEET_USER_KEYS": f"{SECRET}, {OTHER},", "MEET_ADMIN_KEYS": THIRD})
    found = [keyring.find(key) for key in (SECRET, OTHER, THIRD)]
    assert [(key.name, key.role) for key in found if key] == [
        ("user-1", "user"),
        ("user-2", "user"),
        ("admin-1", "admin"),
    ]
    assert [keyring.find(key) for key in (None, "", SECRET[:-1], SECRET + "x", "\udcff")] == [None] * 5


def test_keys_that_were_given_otherwise_are_users() -> None:
    keyring = Keyring(None, {}, [SECRET, OTHER])
    found = keyring.find(OTHER)
    assert found is not None
    assert (found.name, found.role, keyring.has_admin) == ("api-key-2", "user", False)
    assert Keyring(None, {"MEET_ADMIN_KEYS": THIRD}).has_admin


def test_no_key_is_known_where_none_is_set_and_none_is_no_key(tmp_path: Path) -> None:
    keyring = Keyring(None, {})
    assert keyring.is_empty
    assert keyring.find("") is None
    of_nothing = write(tmp_path / "keys.json", {"name": "a", "sha256": hashlib.sha256(b"").hexdigest()})
    assert [Keyring(of_nothing, {}).find(key) for key in ("", None)] == [None, None]


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(
        f"""
keys:
- {{name: widget, key: {SECRET}, max_concurrent: 2, preferences: [concise]}}
- {{name: ops, role: admin, sha256: {hashlib.sha256(OTHER.encode()).hexdigest()}}}
"""
    )
    keyring = Keyring(file, {"MEET_USER_KEYS": THIRD})
    widget, ops = keyring.find(SECRET), keyring.find(OTHER)
    assert widget is not None
    assert (widget.max_concurrent, widget.allows(["concise"]), widget.allows(["concise", "formal"])) == (
        2,
        None,
        "formal",
    )
    assert ops is not None
    assert (ops.role, ops.allows(["formal"]), keyring.has_admin) == ("admin", None, True)
    assert keyring.find(THIRD) is not None


def test_rotation_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "meet_server.access.keyring")  # whatever a server in this process has set
    clock = Clock()
    file = write(tmp_path / "keys.json", {"name": "old", "key": SECRET})
    keyring = Keyring(file, {}, clock=clock)
    write(tmp_path / "new.json", {"name": "old", "key": SECRET}, {"name": "new", "key": OTHER}).replace(file)
    assert keyring.find(OTHER) is None  # looked at once a second
    clock.now = 1.5
    assert keyring.find(OTHER) is not None
    write(file, {"name": "new", "key": OTHER})
    clock.now = 3
    assert keyring.find(SECRET) is None
    clock.now = 4.5
    assert keyring.find(OTHER) is not None
    assert caplog.text.count("keys were read anew: ") == 2  # not while the file is as it was
    for broken in ("{", json.dumps({"keys": [{"name": "x", "key": THIRD, "rol": 1}]}), json.dumps({"keys": []}), ""):
        file.write_text(broken)
        clock.now += 2
        assert keyring.find(OTHER) is not None  # left as they were
    file.unlink()
    clock.now += 2
    assert keyring.find(OTHER) is not None
    assert "keys are left as they were" in caplog.text
    assert not any(secret in caplog.text for secret in (SECRET, OTHER, THIRD))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"keys: [{{name: a, key: '{SECRET}]", "is not YAML, line 1"),
        (f"{SECRET}: 1", "keys: Field required"),
        (f"[{SECRET}]", "keys: Input should be"),
        (f"keys: [{{name: a, {SECRET}: 1}}]", "keys.0: Extra inputs"),
        (f"keys: [{{name: '{SECRET} x', key: {OTHER}}}]", "keys.0.name: String should match pattern"),
        (f"keys: [{{name: a, role: {SECRET}, key: {OTHER}}}]", "keys.0.role: Input should be 'user' or 'admin'"),
        (f"keys: [{{name: a, sha256: {SECRET}}}]", "keys.0.sha256: String should match pattern"),
        ("keys: [{name: a, key: short}]", "keys.0.key: Value should have at least 16"),
        (
            f"keys: [{{name: a, key: {SECRET}, max_concurrent: 0}}]",
            "keys.0.max_concurrent: Input should be greater than",
        ),
        ("keys: [{name: a}]", "one of key and sha256 must be given"),
        ("keys: []", "at least 1 item"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: b, key: {SECRET}}}]", "the secret of a, b"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: a, key: {OTHER}}}]", "the name of a"),
    ],
)
def test_mistakes_are_told_without_the_secret(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ServerError) as caught:
        Keyring(file, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(secret in f"{caught.value!r} {caught.value.__cause__!r}" for secret in (SECRET, OTHER))


def test_a_file_that_is_not_there_and_short_keys(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read: No such file"):
        Keyring(tmp_path / "none.yaml", {})
    with pytest.raises(ServerError, match="MEET_ADMIN_KEYS: key 2 is shorter than 16"):
        Keyring(None, {"MEET_ADMIN_KEYS": f"{SECRET},tiny-secret"})


def test_no_secret_is_kept(tmp_path: Path) -> None:
    keyring = Keyring(write(tmp_path / "keys.json", {"name": "a", "key": SECRET}), {"MEET_USER_KEYS": OTHER})
    logging.getLogger().debug("%r", vars(keyring))
    assert not any(secret in repr(vars(keyring)) for secret in (SECRET, OTHER))
