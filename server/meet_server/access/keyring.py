"""The keys that clients may show: read from a file and the environment, and known by their digests alone.

A file that changes is read anew, so that keys are rotated without a restart; one that has become wrong is reported
and leaves the keys as they were. No key is ever part of an error or a log line.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from meet_server.errors import ServerError

USER_KEYS, ADMIN_KEYS = "MEET_USER_KEYS", "MEET_ADMIN_KEYS"
MIN_LENGTH = 16
_RECHECK_S = 1.0
_LOGGER = logging.getLogger(__name__)

Role = Literal["user", "admin"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key: what logs and metrics call it, what it allows, and the SHA-256 of the secret."""

    name: str
    role: Role
    digest: bytes
    max_concurrent: int | None = None
    preferences: frozenset[str] | None = None

    def allows(self, names: Iterable[str]) -> str | None:
        """The first of these preferences that the key may not use, or None."""
        if self.preferences is None:
            return None
        return next((name for name in names if name not in self.preferences), None)


class KeyEntry(BaseModel):
    """One key in the file of keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="what logs and metrics call the key; never the key"
    )
    role: Role = Field(default="user", description="`admin` may change preferences and the engine too")
    key: SecretStr | None = Field(default=None, min_length=MIN_LENGTH, description="the key itself, or give `sha256`")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the key, hexadecimal")
    max_concurrent: int | None = Field(default=None, ge=1, description="requests at a time; any number by default")
    preferences: tuple[str, ...] | None = Field(
        default=None, description="names of the preferences it may use, beside none at all; every one by default"
    )

    @model_validator(mode="after")
    def _one_secret(self) -> KeyEntry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("one of key and sha256 must be given")
        return self

    def read(self) -> Key:
        digest = bytes.fromhex(self.sha256) if self.key is None and self.sha256 else _digest(_secret(self.key))
        preferences = None if self.preferences is None else frozenset(self.preferences)
        return Key(self.name, self.role, digest, self.max_concurrent, preferences)


class KeyFile(BaseModel):
    """The file of keys, YAML or JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: tuple[KeyEntry, ...] = Field(min_length=1)


class Keyring:
    """Every key that is accepted now."""

    def __init__(
        self,
        file: Path | None,
        environment: Mapping[str, str],
        more: Iterable[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`more` are keys of users that were given otherwise. Raises ServerError, which tells no secret."""
        self._file = file
        self._clock = clock
        self._fixed = (
            *_from_environment(environment, USER_KEYS, "user"),
            *_from_environment(environment, ADMIN_KEYS, "admin"),
            *(Key(f"api-key-{number}", "user", _digest(key)) for number, key in enumerate(more, 1)),
        )
        self._seen = None if file is None else _state(file)
        self._keys = self._read()
        self._next_check = clock() + _RECHECK_S

    @property
    def is_empty(self) -> bool:
        """No key is set: whoever reaches the server may use it."""
        return not self._keys

    @property
    def has_admin(self) -> bool:
        return any(key.role == "admin" for key in self._keys)

    def find(self, presented: str | None) -> Key | None:
        """The key that was shown, compared with all in a time that does not tell which is nearest."""
        self._refresh()
        digest = _digest(presented or "")
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found if presented else None

    def _refresh(self) -> None:
        if self._file is None or self._clock() < self._next_check:
            return
        self._next_check = self._clock() + _RECHECK_S
        state = _state(self._file)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = self._read()
        except ServerError as error:
            _LOGGER.error("keys are left as they were: %s", error)
        else:
            _LOGGER.warning("keys were read anew: %s", ", ".join(key.name for key in self._keys))

    def _read(self) -> tuple[Key, ...]:
        keys = (*self._fixed, *(() if self._file is None else _from_file(self._file)))
        for what, values in (("name", [key.name for key in keys]), ("secret", [key.digest for key in keys])):
            if len(set(values)) < len(values):
                twice = sorted({key.name for key, value in zip(keys, values, strict=True) if values.count(value) > 1})
                raise ServerError(f"keys: more than one has the {what} of {', '.join(twice)}")
        return keys


def _from_environment(environment: Mapping[str, str], variable: str, role: Role) -> list[Key]:
    """Keys that stand in a variable with commas between them, named by their place in it."""
    listed = [key for key in (part.strip() for part in environment.get(variable, "").split(",")) if key]
    short = [str(number) for number, key in enumerate(listed, 1) if len(key) < MIN_LENGTH]
    if short:
        raise ServerError(f"{variable}: key {', '.join(short)} is shorter than {MIN_LENGTH} characters")
    return [Key(f"{role}-{number}", role, _digest(key)) for number, key in enumerate(listed, 1)]


def _from_file(file: Path) -> list[Key]:
    try:
        data = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise ServerError(f"file of keys {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # What these errors quote may be a key.
        mark: Any = getattr(error, "problem_mark", None)
        raise ServerError(
            f"file of keys {file} is not YAML{'' if mark is None else f', line {mark.line + 1}'}"
        ) from None
    try:
        return [entry.read() for entry in KeyFile.model_validate(data).keys]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # A field that is not known is not named: it may be a key that was written in the wrong place.
        known = [part for part in first["loc"] if isinstance(part, int) or part in {"keys", *KeyEntry.model_fields}]
        raise ServerError(f"file of keys {file}: {'.'.join(map(str, known)) or 'keys'}: {first['msg']}") from None


def _state(file: Path) -> tuple[int, int, int] | None:
    """What differs once the file was written or replaced, links followed."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _secret(key: SecretStr | None) -> str:
    return "" if key is None else key.get_secret_value()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
