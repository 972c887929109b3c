"""The pictures in docs/images: the page of a running server, asked real questions in a real Chromium.

python requirements/screenshots.py [URL] [FOLDER]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
QUESTION = "Why do cats purr?"
DESKTOP = {"viewport": {"width": 1160, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def set_slider(page: Any, name: str, strength: float) -> None:
    page.locator(f"#strength-{name}").fill(str(strength))


def ask(page: Any, label: str, question: str) -> None:
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("160")
    page.get_by_label(label).fill(question)
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Send").wait_for(timeout=180_000)


def chat(page: Any) -> None:
    set_slider(page, "bulleted", 1)
    set_slider(page, "detailed", 0.5)
    ask(page, "Message", QUESTION)


def side_by_side(page: Any) -> None:
    page.get_by_role("button", name="Side by side").click()
    page.get_by_role("button", name="Add a column").click()
    ask(page, "Prompt for all", QUESTION)


def phone(page: Any) -> None:
    set_slider(page, "concise", 1)
    ask(page, "Message", QUESTION)


def phone_sliders(page: Any) -> None:
    set_slider(page, "concise", 0.5)
    set_slider(page, "bulleted", 1)


PICTURES: dict[str, tuple[dict[str, Any], str, Callable[[Any], None], str]] = {
    "chat": (DESKTOP, "light", chat, "header"),
    "side-by-side": (DESKTOP, "dark", side_by_side, "header"),
    "phone": (PHONE, "light", phone, "header"),
    "phone-dark": (PHONE, "dark", phone_sliders, "aside"),
}


def main(url: str = "http://localhost:8000", folder: str = str(ROOT / "docs" / "images")) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("make screenshots: no chromium on the path")
    Path(folder).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, (device, scheme, play, top) in PICTURES.items():
            page = browser.new_context(color_scheme=scheme, **device).new_page()
            page.goto(url)
            page.get_by_role("slider").first.wait_for()
            play(page)
            # No field in focus, and what the picture is of at its top.
            page.evaluate(
                "top => { document.activeElement.blur(); document.querySelector(top).scrollIntoView(); }", top
            )
            picture = Path(folder) / f"{name}.png"
            page.screenshot(path=picture)
            Image.open(picture).quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
            page.context.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
