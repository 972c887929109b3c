"""The documentation: its reference is fresh, its links lead somewhere, its navigation has every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BESIDE = [*ROOT.glob("*.md"), *(ROOT / "examples").glob("*/README.md"), *(ROOT / "clients").glob("*/README.md")]


def test_the_reference_is_what_the_code_says(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "requirements" / "docs_reference.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = ROOT / "docs" / "reference"
    assert {path.name for path in folder.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for made in tmp_path.iterdir():
        assert (folder / made.name).read_text() == made.read_text(), f"docs/reference/{made.name} is stale: `make docs`"


def test_every_relative_link_leads_to_a_file_and_to_a_heading_of_it() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in [*PAGES, *BESIDE]
        for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", page.read_text())
        if "://" not in link and not link.startswith("mailto:") and not leads_somewhere(page, link)
    ]
    assert dead == []


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target.read_text()))


def anchors(text: str) -> set[str]:
    """Of a page's headings, as MkDocs and GitHub make them."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_index_names_every_page() -> None:
    named = set(re.findall(r"\]\(([\w/]+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES} - {"index.md"}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"])))
    assert named == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES}


def test_every_included_file_is_there() -> None:
    included = [name for page in PAGES for name in re.findall(r'--8<-- "([^"]+)"', page.read_text())]
    assert len(included) >= 7
    assert [name for name in included if not (ROOT / name).is_file()] == []
