"""Serve the page and open it in a real browser: what the tests of it and its pictures share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Page, sync_playwright

from errors import UserError
from tests.helpers import free_port

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SECONDS = 60  # a busy machine takes its time
N_TABS = 80  # more than the page has places to stop at
PHONE = 390  # pixels
SCREENSHOTS = "WEB_SCREENSHOTS"  # names a folder; unset: no pictures, which take a quarter of a load
LOCAL = "http://127.0.0.1:"
# The browser finds no other machine. To ask the test about every request takes half a second of a load.
ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


def start(folder: Path, port: int, **environment: str) -> subprocess.Popen[str]:
    """Start `python app.py` with the weights of a folder; its output can be read."""
    command = [sys.executable, "app.py", "--checkpoints", str(folder), "--port", str(port), "--device", "cpu"]
    own = os.environ | environment
    return subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until_served(server: subprocess.Popen[str], address: str) -> None:
    """Return the address that the server prints. Raises UserError with its output if it ends instead."""
    lines = []
    for line in server.stdout:
        if address in line:
            # Go on reading: a full pipe would stop the server.
            Thread(target=server.stdout.read, daemon=True).start()
            return
        lines.append(line)
    raise UserError(f"app.py ended with {server.wait()} before it served the page:\n{''.join(lines)}")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the page with the weights of a folder; gives its address."""
    port = free_port()
    server = start(folder, port)
    try:
        wait_until_served(server, f"{LOCAL}{port}")
        yield f"{LOCAL}{port}"
    finally:
        server.terminate()
        server.wait(SECONDS)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Give a headless Chromium: the machine's, or else the one that Playwright downloaded; UserError without either."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, BROWSERS)), playwright.chromium.executable_path)
        if not Path(found).is_file():
            raise UserError(
                "no Chromium was found: install one (Debian: apt-get install chromium), or playwright install chromium"
            )
        browser = playwright.chromium.launch(executable_path=found, args=[ALONE])
        yield browser
        browser.close()


@contextmanager
def visiting(browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> Iterator[Page]:
    """Open the page as a new visitor who reaches only this machine. Raises AssertionError for any other request.

    width: of the window in pixels; a narrow one is that of a phone. scheme: "light" or "dark".
    """
    viewport = {"width": width, "height": 1000 if width > PHONE else 844}
    context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=width <= PHONE)
    context.set_default_timeout(1000 * SECONDS)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(address)
    page.locator("#weights input").wait_for()
    yield page
    context.close()
    outside = [url for url in asked if not url.startswith((LOCAL, "data:", "blob:"))]
    assert not outside, f"the page asked for {outside}"


def keep_picture(page: Page, name: str) -> None:
    """Keep how the page looks as a PNG, if a folder is named for it."""
    if folder := os.environ.get(SCREENSHOTS):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until an element has the focus. Raises AssertionError if the keyboard does not reach it."""
    for _ in range(N_TABS):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{N_TABS} presses of Tab do not reach {selector}")


def look_for(page: Page, text: str) -> None:
    """Type a sentence and wait until the page has answered."""
    page.locator("#text textarea").fill(text)
    with answering(page):
        page.keyboard.press("Enter")


@contextmanager
def answering(page: Page) -> Iterator[None]:
    """Wait until what is done inside has been answered: the verdict is another element, and no part is waiting."""
    page.evaluate("document.querySelector('#verdict p').id = 'before'")
    yield
    page.locator("#verdict p#before").wait_for(state="detached")
    page.locator("#verdict p").first.wait_for()
    page.wait_for_timeout(300)  # the pictures come right after the words
    page.wait_for_function(
        "[...document.querySelectorAll('#found img, #other img, #alignment img')].every(image => image.complete)"
    )
