"""Make the pictures of the page in docs/predict.md again, with the weights of a folder.

python -m tests.web.pictures --checkpoints checkpoints --out docs
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from errors import UserError, run
from lib.arguments import HelpFormatter
from lib.files import write_atomically
from lib.pictures.panels import small_png
from tests.web.browsing import answering, browsing, look_for, served, visiting

LONG = (
    "the orange star in the lower left corner of this picture that shows nothing else but hearts and a circle on grey"
)
LARGEST = 150_000  # bytes of a picture
N_TRIES = 4  # a row of the gallery


def take_pictures(page: Page, folder: Path) -> None:
    """Write app.png, with a few examples tried, and app_cut.png, with a sentence that is too long."""
    rows = page.locator("#examples button")
    for number in reversed(range(N_TRIES)):
        with answering(page):
            rows.nth(number).click()
    if page.locator("#verdict .problem").count():
        raise UserError(f"the page answered: {page.locator('#verdict .problem').inner_text()}")
    save(page, folder / "app.png")
    look_for(page, LONG)
    save(page, folder / "app_cut.png")


def save(page: Page, path: Path) -> None:
    """Write a screenshot of the page as a small PNG. Raises UserError if it has more than LARGEST bytes."""
    page.locator("#title").hover()  # no button glows, no row is marked
    page.wait_for_timeout(500)
    shown = Image.open(io.BytesIO(page.screenshot(full_page=True, animations="disabled"))).convert("RGB")
    content = small_png(shown)
    if len(content) > LARGEST:
        raise UserError(f"{path} would have {len(content)} bytes, more than {LARGEST}: lower N_TRIES in {__file__}")
    write_atomically(path, lambda file: file.write(content))
    print(f"{path}: {shown.width} × {shown.height} pixels, {len(content)} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page, try it and write the pictures."""
    parser = argparse.ArgumentParser("python -m tests.web.pictures", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder of weights")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of app.png and app_cut.png")
    args = parser.parse_args(arguments)
    with served(args.checkpoints.resolve()) as address, browsing() as browser, visiting(browser, address) as page:
        take_pictures(page, args.out)


if __name__ == "__main__":
    run(main)
