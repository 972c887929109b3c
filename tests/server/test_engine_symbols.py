"""What the server relies on is in the installed vLLM, and in the sources of any other that MEET_VLLM_SOURCES names."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from engine_symbols import SYMBOLS, Symbol, missing, symbol


def packages() -> list[Path]:
    """The `vllm` folders to look at."""
    named = [Path(path) / "vllm" for path in os.environ.get("MEET_VLLM_SOURCES", "").split(os.pathsep) if path]
    spec = importlib.util.find_spec("vllm")
    installed = list(map(Path, spec.submodule_search_locations or ())) if spec else []
    return [*installed, *named]


@pytest.mark.parametrize("package", packages(), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("wanted", SYMBOLS, ids=str)
def test_a_release_has_it(package: Path, wanted: Symbol) -> None:
    assert missing(package, wanted) is None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import Thing as Other, here\n")
    (package / "inner" / "__init__.py").write_text(
        "from vllm.inner.deep import here\nif True:\n    class Thing: pass\n"
    )
    (package / "inner" / "deep.py").write_text("class A:\n    async def f(self, x, *, y): ...\ndef here(a): ...\n")
    assert missing(package, symbol("vllm", "here", "a")) is None
    assert missing(package, symbol("vllm", "here", "b")) == "vllm.here has no parameter b"
    assert missing(package, symbol(("vllm.gone", "vllm.inner.deep"), "A.f", "x", "y")) is None
    assert missing(package, symbol("vllm.inner.deep", "A.g")) == "vllm.inner.deep has no A.g"
    assert missing(package, symbol("vllm.inner", "Nothing")) == "vllm.inner has no Nothing"
    assert missing(package, symbol("vllm.gone", "x")) == "there is no vllm.gone"
