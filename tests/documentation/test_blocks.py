"""Every block of the documentation is of a kind that some test runs, and that test gets to see it."""

from __future__ import annotations

import pytest
from documented import ROOT, Block, blocks, num_fences, pages

RUN_BY = {
    "shell": "test_commands.py, test_running.py, tests/server/test_documented_requests.py, the tutorial's own test",
    "python": "tests/server/test_documented_requests.py, tests/training/test_python_api.py (docs/PYTHON.md)",
    "ts": "tests/server/test_documented_requests.py",
    "yaml": "test_configurations.py, and beside it the tests of the page's package",
    "json": "test_configurations.py",
    "js": "tests/server/test_client_examples.py, as files that pages include",
    "text": "test_running.py",
}


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.place)
def test_some_test_runs_it(block: Block) -> None:
    assert block.kind in RUN_BY, f"{block.place}: no test knows blocks of {block.kind}; add one, and name it here"
    if block.kind == "js":
        assert block.includes, f"{block.place}: JavaScript stands in examples/clients, whose files tests run"


def test_every_fence_is_seen() -> None:
    seen = dict.fromkeys((path.relative_to(ROOT).as_posix() for path in pages()), 0)
    for block in blocks():
        seen[block.page] += 2
    assert seen == {path.relative_to(ROOT).as_posix(): num_fences(path) for path in pages()}
    assert sum(seen.values()) > 100
