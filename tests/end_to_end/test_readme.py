"""The README's first screen, word for word in a fresh clone: three commands, and it answers in another way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from documented import commands
from page_shell import run, serving
from run_by import README, commands_run_by


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_person_who_reads_the_first_screen(clone: Path, new_user: dict[str, str]) -> None:
    """`make demo` installs, trains and serves; the request is given as it stands, then for another preference."""
    [demo] = commands_run_by(README)
    [ask] = [command for command in commands() if command.page == "README.md" and command.words[0] == "curl"]
    assert '"concise"' in ask.text
    with serving(demo.text, clone, new_user):
        said = {
            preference: words_of(run(ask.text.replace("concise", preference), clone, new_user).output)
            for preference in ("concise", "detailed")
        }
    print(said, flush=True)  # noqa: T201
    assert 2 * said["concise"] < said["detailed"]


def words_of(answer: str) -> int:
    return len(json.loads(answer)["choices"][0]["message"]["content"].split())
