"""docs/OPERATING.md names every setting with its default and its meaning, and every code of an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from meet_server.access.keyring import KeyFile
from meet_server.http.errors import STATUSES
from meet_server.settings import Settings

DOCS = (Path(__file__).parents[2] / "docs" / "OPERATING.md").read_text()


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The table's line for each setting, as the documentation must have it."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from rows(field.annotation, f"{prefix}{name}.")
            continue
        default = "" if field.default is PydanticUndefined else yaml.safe_dump(field.default, default_flow_style=True)
        default = default.removesuffix("\n").removesuffix("\n...")
        yield f"| `{prefix}{name}` | {f'`{default}`' if default else 'needed'} | {field.description} |"


@pytest.mark.parametrize("row", list(rows(Settings)))
def test_every_setting(row: str) -> None:
    assert row in DOCS.splitlines()


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_every_error(code: str) -> None:
    assert f"| `{code}` | {STATUSES[code]} |" in DOCS


def test_the_example_of_a_file_of_keys_is_one() -> None:
    text = DOCS.split("```yaml\n# keys.yaml\n")[1].split("```")[0]
    assert len(KeyFile.model_validate(yaml.safe_load(text)).keys) == 3
