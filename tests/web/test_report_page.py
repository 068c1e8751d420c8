"""The list of all sentences in a report, opened from the disk in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from lib.evaluation.page import ALT, HEADS
from tests.test_report import HOSTILE, Dataset, batches, collect, write
from tests.web.browsing import PHONE, keep_picture

TEXTS = ["red cup", "blue cup", "x" * 70, *HOSTILE]


@pytest.fixture
def report(browser: Browser, tmp_path: Path) -> Page:
    """A report of eight sentences, whose object and prediction share more and more."""
    targets = torch.ones(len(TEXTS), 10, 10, dtype=torch.int64)
    predicted = torch.zeros_like(targets)
    for number, one in enumerate(predicted):
        one[: number + 2] = 1
    pairs = batches(targets, predicted, list(range(len(TEXTS))))
    write(collect(tmp_path, Dataset(targets, TEXTS), pairs))
    page = browser.new_page()
    page.goto((tmp_path / "index.html").as_uri())
    return page


def right_edges(page: Page, selector: str) -> list[float]:
    """Return the right edges of the elements in pixels, from the left of the window."""
    edges: list[float] = page.locator(selector).evaluate_all(
        "elements => elements.map(element => element.getBoundingClientRect().right)"
    )
    assert edges
    return edges


def test_a_phone_shows_the_page_without_cutting_it_off(report: Page) -> None:
    """Also numbers beside long heads of rows and long sentences, and an opened picture."""
    report.set_viewport_size({"width": PHONE, "height": 844})
    report.get_by_role("button", name="blue cup").click()
    expect(report.locator("#sentences img")).to_be_visible()
    assert report.evaluate("document.documentElement.scrollWidth") == PHONE
    for numbers in (
        "#scores td:nth-child(3)",
        "#scores caption",
        "#sentences td:nth-child(3)",
        "#sentences img",
        ".pair tr:nth-child(1) > :nth-child(3)",
    ):
        assert max(right_edges(report, numbers)) <= PHONE, f"{numbers} is out of sight"
    keep_picture(report, "report-phone")


def test_sentences_are_sorted_filtered_and_shown(report: Page) -> None:
    alerts: list[str] = []
    report.on("dialog", lambda dialog: alerts.append(dialog.message))
    lines = report.locator("#sentences tbody tr")
    expect(lines).to_have_count(len(TEXTS))
    report.get_by_role("button", name="IoU %").click()
    expect(lines.first).to_contain_text("20.00")
    report.get_by_role("button", name="IoU %").click()
    expect(lines.first).to_contain_text("90.00")
    assert report.locator("#sentences th").nth(1).get_attribute("aria-sort") == "descending"

    report.get_by_label("words").fill("CUP")
    expect(lines).to_have_count(2)
    report.get_by_label("IoU from").fill("25")
    expect(report.get_by_role("status")).to_have_text("1 of 8 expressions")

    assert not report.locator("#sentences img").count(), "no picture before it is asked for"
    report.get_by_role("button", name="blue cup").click()
    picture = report.locator("#sentences img")
    expect(picture).to_be_visible()
    expect(picture).to_have_attribute("alt", f"{ALT}blue cup")
    expect(report.locator("#sentences .heads span")).to_have_text(list(HEADS))
    report.wait_for_function("document.querySelector('#sentences img').naturalWidth > 100")
    assert not alerts
