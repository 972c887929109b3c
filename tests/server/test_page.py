"""The playground: its files as the server gives them, and its views in a real browser on the real server."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_absent import absent
from running_server import Server

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "clients" / "playground"
AXE = SOURCES / "node_modules" / "axe-core" / "axe.min.js"
MAX_FIRST_LOAD = 300_000  # bytes, compressed


def test_the_page_comes_whole_from_the_server(server: Server) -> None:
    page = httpx.get(f"{server.url}/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    names = re.findall(r'(?:src|href)="\./playground/([^"]+)"', page.text)
    assert sorted(names) == ["page.css", "page.js"]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
    parts = [page.content, *(httpx.get(f"{server.url}/playground/{name}").content for name in names)]
    assert sum(len(gzip.compress(part)) for part in parts) < MAX_FIRST_LOAD
    assert httpx.head(f"{server.url}/").status_code == 200
    assert httpx.get(f"{server.url}/playground/sources.sha256").status_code == 404


def test_the_page_was_built_from_these_sources() -> None:
    names = ["index.html", "package-lock.json", "tsconfig.json", "vite.config.js"]
    names += [f"src/{path.name}" for path in (SOURCES / "src").iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0".encode() + (SOURCES / name).read_bytes() + b"\0")
    built_from = (ROOT / "server" / "meet_server" / "page" / "sources.sha256").read_text().strip()
    assert built_from == digest.hexdigest(), "the playground's sources changed: `make clients` builds it"


TOKENS = re.compile(r"tokens\s+([1-9]|1[0-2])\b")  # a random model may end before the limit of 12
DESKTOP = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True, "is_mobile": True}


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone-in-the-dark"])
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    url = server.url
    context = browser.new_context(**request.param)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith((url, "data:")) else None)
    page.goto(url)
    page.get_by_role("slider").first.wait_for()
    yield page
    context.close()
    # The one that Chromium makes itself of a refused request is wanted.
    assert [each for each in complaints if not each.startswith("Failed to load resource")] == []


def check_accessible(page: Any) -> None:
    """No violation of any rule of axe. The script goes in by the debugger's way, past the page's own policy."""
    if not AXE.is_file():
        absent("needs axe-core: `make clients`")
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]] == []
    assert len(found["passes"]) > 15
    fits = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert fits, "the page is wider than the window"


def slider(page: Any, name: str) -> Any:
    return page.locator(f"#strength-{name}")


def test_a_chat_by_keyboard(page: Any) -> None:
    page.get_by_label("Tokens at most").fill("12")
    slider(page, "concise").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("output[for=strength-concise]").inner_text().startswith("0.10")
    assert "words" in page.locator("output[for=strength-concise]").inner_text()
    assert page.locator(".slider svg.curve").count() >= 2
    page.get_by_label("Message").focus()
    page.keyboard.type("What is rain?")
    page.keyboard.press("Enter")
    page.locator(".facts").wait_for()
    page.get_by_role("button", name="Send").wait_for()
    facts = page.locator(".facts").inner_text()
    assert re.search(r"concise=0\.1; version=[0-9a-f]{12}", facts)
    assert TOKENS.search(facts)
    assert re.search(r"\d+ ms", facts)
    page.get_by_role("button", name="No control").click()
    assert page.get_by_text("Asks for: no control").is_visible()
    check_accessible(page)


def test_preferences_side_by_side(page: Any) -> None:
    page.get_by_label("Tokens at most").fill("12")
    page.get_by_role("button", name="Side by side").click()
    page.get_by_role("button", name="Add a column").click()
    page.get_by_label("Prompt for all").fill("What is rain?")
    page.get_by_role("button", name="Send").click()
    page.locator(".columns .facts").nth(2).wait_for()
    page.get_by_role("button", name="Send").wait_for()
    facts = page.locator(".columns .facts").all_inner_texts()
    assert ["concise" in facts[0], "detailed" in facts[1], "none" in facts[2]] == [True] * 3
    assert all(TOKENS.search(each) for each in facts)
    check_accessible(page)


def test_a_request_as_code(page: Any) -> None:
    slider(page, "detailed").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_label("Key").fill("sk-secret")
    page.locator("summary:visible", has_text="Copy as code").click()
    for language, words in (
        ("curl", "/v1/chat/completions"),
        ("Python", "extra_body={"),
        ("TypeScript", "new OpenAI("),
    ):
        page.get_by_role("combobox", name="Language").select_option(language)
        code = page.get_by_role("region", name=f"The request as {language}").inner_text()
        assert words in code
        assert '"detailed": 0.05' in code
        assert "sk-secret" not in code
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert stored == [0, 0, ""]
    check_accessible(page)


def test_an_error_is_shown_and_the_message_kept(page: Any) -> None:
    page.get_by_label("Message").fill("What is rain?")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json={"error": {"message": "busy"}}))
    page.get_by_role("button", name="Send").click()
    assert page.get_by_role("alert").inner_text() == "429: busy"
    assert page.get_by_label("Message").input_value() == "What is rain?"
