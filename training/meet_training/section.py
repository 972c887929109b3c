"""The base of every part of a configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One concern of a configuration: immutable, and a key that is not a field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
