"""The page in a real browser: what a visitor does and sees."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from app import N_DRAWINGS, PHOTOGRAPHS
from lib.photo import open_photo
from lib.pictures.overlay import PREDICTION_COLOUR
from page.answers import SHOWN_SIDE, draw_objects, thumbnail
from page.html import percent
from predict import load, segment
from tests.web.browsing import (
    LOCAL,
    PHONE,
    ROOT,
    SECONDS,
    answering,
    free_port,
    keep_picture,
    look_for,
    served,
    start,
    tab_to,
    visiting,
    wait_until_served,
)

LONG = "the small plain red heart to the left of the large striped blue circle and above the black star in the middle"


@pytest.fixture(autouse=True)
def _patient() -> None:
    expect.set_options(timeout=1000 * SECONDS)


def take_example(page: Page, number: int = 0) -> str:
    """Click on an example, wait for the answer and return its sentence."""
    row = page.locator("#examples button").nth(number)
    with answering(page):
        row.click()
    return page.locator("#text textarea").input_value()


def upload(page: Page, path: Path) -> None:
    """Choose a file of one's own."""
    with answering(page):
        page.locator("#photo input[type=file]").set_input_files(path)


def picture(page: Page, element: str) -> Image.Image:
    """Return an image that the page shows, as the server sent it."""
    response = page.request.get(page.locator(f"{element} img").get_attribute("src"))
    assert response.ok
    return Image.open(io.BytesIO(response.body()))


def captions(page: Page) -> list[str]:
    return page.locator("#tries .caption-label").all_inner_texts()


def problem(page: Page) -> Locator:
    return page.locator("#verdict .problem")


def expected_iou(page: Page) -> str:
    return page.locator("#verdict .answer").inner_text().removeprefix("Expected IoU ")


def test_the_page_is_ready_for_a_visitor(page: Page) -> None:
    expect(page).to_have_title("CrossVLT")
    expect(page.locator("#examples button")).to_have_count(N_DRAWINGS + len(PHOTOGRAPHS))
    expect(page.locator("#weights input")).to_have_value("sample_nano.safetensors")
    expect(page.locator("#verdict .note")).to_contain_text("Choose an image")
    expect(page.locator("#tries .caption-label")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "something is cut off"


def test_an_example_and_a_sentence_typed_are_answered(page: Page, weights: Path) -> None:
    """The page shows the prediction of predict.py, to the last pixel; earlier tries stay, the newest first."""
    first = take_example(page)
    photo = open_photo(io.BytesIO(page.request.get(page.locator("#photo img").get_attribute("src")).body()))
    model = load(weights / "sample_nano.safetensors")
    for text in (first, "the orange star"):
        if text != first:
            look_for(page, text)
        found = segment(model, photo, text)
        assert found.area
        assert expected_iou(page) == percent(found.score)
        shown = np.asarray(picture(page, "#found"))
        np.testing.assert_array_equal(shown, np.asarray(draw_objects(thumbnail(photo, SHOWN_SIDE), [found])))
        assert (shown == PREDICTION_COLOUR).all(2).any()
        maps = picture(page, "#alignment")
        assert maps.width > 5 * maps.height / 2
        assert np.asarray(maps.convert("HSV"))[..., 1].std() > 10  # colours, no blank sheet
    assert [line.split(":")[0] for line in captions(page)] == ["the orange star", first]
    assert all(line.endswith("% (sample_nano.safetensors)") for line in captions(page))


def test_the_button_asks_too(page: Page) -> None:
    take_example(page, 1)
    page.locator("#text textarea").fill("blue triangle")
    with answering(page):
        page.locator("#find").click()
    assert captions(page)[0].startswith("blue triangle:")


def test_a_request_to_another_machine_is_noticed(browser: Browser, address: str) -> None:
    with pytest.raises(AssertionError, match=r"elsewhere\.example"), visiting(browser, address) as page:
        assert page.evaluate("fetch('http://elsewhere.example/').catch(() => 'refused')") == "refused"


def test_every_visitor_has_tries_of_their_own(page: Page) -> None:
    take_example(page)
    page.reload()
    page.locator("#weights input").wait_for()
    take_example(page, 2)
    assert len(captions(page)) == 1


def test_an_empty_sentence_is_reported(page: Page) -> None:
    for number, text in enumerate(["", "   "], start=1):
        take_example(page)
        look_for(page, text)
        expect(problem(page)).to_contain_text("the sentence is empty: describe an object")
        expect(page.locator("#found img")).to_have_count(0)
        assert len(captions(page)) == number


def test_a_sentence_without_an_image_is_reported(page: Page) -> None:
    look_for(page, "the red heart")
    expect(problem(page)).to_contain_text("there is no image")


def test_a_long_sentence_shows_where_it_was_cut(page: Page, weights: Path) -> None:
    take_example(page)
    look_for(page, LONG)
    unread = segment(load(weights / "sample_nano.safetensors"), Image.new("RGB", (9, 9)), LONG).unread
    assert page.locator("#verdict del").inner_text() == unread
    assert page.locator("#verdict .sentence").inner_text() == f"“{LONG}”"
    expect(page.locator("#verdict .cut")).to_contain_text("reads 20 words")
    assert captions(page)[0].startswith(LONG[:40])


def test_special_characters_in_a_sentence_are_escaped(page: Page) -> None:
    take_example(page)
    text = "<img src=x onerror=alert(1)> {{value}} ${1+1} `&amp;`"
    look_for(page, text)
    assert page.locator("#verdict .sentence").inner_text() == f"“{text}”"
    assert page.locator("#verdict img").count() == 0


def test_an_uploaded_photo_is_shown_upright(page: Page, tmp_path: Path) -> None:
    photo = Image.new("RGB", (1600, 900), "white")
    photo.paste("red", (100, 100, 500, 500))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    photo.save(tmp_path / "mine.jpg", exif=exif)
    upload(page, tmp_path / "mine.jpg")
    expect(page.locator("#verdict .note")).to_contain_text("describe an object")
    look_for(page, "red square")
    assert picture(page, "#found").size == (720, 1280)


def write_text(path: Path) -> None:
    path.write_text("these are words\n" * 100)


def write_too_many_pixels(path: Path) -> None:
    Image.new("1", (9000, 9000)).save(path)


def test_invalid_and_large_files_are_refused(page: Page, tmp_path: Path) -> None:
    kinds = [(write_text, "not a supported image"), (write_too_many_pixels, "50 megapixels")]
    for number, (write, message) in enumerate(kinds, start=1):
        take_example(page)
        write(tmp_path / f"mine{number}.png")
        upload(page, tmp_path / f"mine{number}.png")
        expect(problem(page)).to_contain_text(message)
        expect(problem(page)).to_contain_text(f"mine{number}.png")
        expect(page.locator("#photo img")).to_have_count(0)
        assert len(captions(page)) == number


def test_the_browser_refuses_other_types_and_huge_files(page: Page, tmp_path: Path) -> None:
    for name, size, message in [("notes.txt", 9, "file type"), ("mine.png", 20_000_001, "size")]:
        (tmp_path / name).write_bytes(bytes(size))
        page.locator("#photo input[type=file]").set_input_files(tmp_path / name)
        expect(page.locator("[data-testid=toast-body]").filter(has_text=message)).to_have_count(1)
        expect(page.locator("#photo img")).to_have_count(0)


@pytest.mark.parametrize("outside", [True, False])
def test_no_file_but_an_upload_is_opened(browser: Browser, address: str, tmp_path: Path, outside: bool) -> None:
    """A request made by hand names a file that was never uploaded, or for comparison one that was."""
    file = tmp_path / "mine.png"
    Image.new("RGB", (30, 30)).save(file)
    with browser.new_context(base_url=address) as context:
        if not outside:
            posted = {"files": {"name": file.name, "mimeType": "image/png", "buffer": file.read_bytes()}}
            file = context.request.post("/gradio_api/upload", multipart=posted).json()[0]
        config = context.request.get("/config").json()
        number = next(one["id"] for one in config["dependencies"] if one["targets"][0][1] == "upload")
        record = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
        request = {"fn_index": number, "data": [record], "session_hash": f"by-hand-{outside}"}
        assert context.request.post("/gradio_api/queue/join", data=request).ok
        events = context.request.get(f"/gradio_api/queue/data?session_hash={request['session_hash']}").text()
    assert ('"success":false' in events) == outside
    assert ("describe an object" in events) != outside


def choose_weights(page: Page, name: str, place: str = "#weights") -> list[str]:
    """Choose weights by name, without the suffix; return all that were offered."""
    page.locator(f"{place} input").click()
    chosen = page.get_by_role("option", name=name)
    chosen.wait_for()
    offered = [text.removeprefix("✓").strip() for text in page.get_by_role("option").all_inner_texts()]
    chosen.dispatch_event("mousedown")
    expect(page.locator(f"{place} input")).to_have_value(f"{name}.safetensors")
    return offered


def test_checkpoints_are_switched(page: Page) -> None:
    text = take_example(page)
    before = np.asarray(picture(page, "#alignment"))
    offered = choose_weights(page, "another")
    assert offered == ["sample_nano.safetensors", "another.safetensors", "damaged.safetensors"]
    with answering(page):
        page.locator("#find").click()
    assert (np.asarray(picture(page, "#alignment")) != before).any()
    assert captions(page)[0].startswith(f"{text}: ")
    assert captions(page)[0].endswith("% (another.safetensors)")


def test_damaged_weights_are_reported_and_others_still_work(page: Page) -> None:
    take_example(page)
    choose_weights(page, "damaged")
    with answering(page):
        page.locator("#find").click()
    expect(problem(page)).to_contain_text("damaged.safetensors could not be read")
    choose_weights(page, "sample_nano")
    with answering(page):
        page.locator("#find").click()
    assert len(captions(page)) == 2


def test_the_keyboard_alone_reaches_all(page: Page) -> None:
    """An example, its words, another sentence and the earlier try."""
    tab_to(page, "#examples button")
    with answering(page):
        page.keyboard.press("Enter")
    first = page.locator("#text textarea").input_value()
    tab_to(page, "#ask-words")
    page.keyboard.press("Enter")
    expect(page.locator("#words .word")).to_have_count(len(first.split()))
    tab_to(page, "#text textarea")
    page.keyboard.press("Control+a")
    page.keyboard.type("red heart")
    tab_to(page, "#find")
    with answering(page):
        page.keyboard.press("Enter")
    assert [line.split(":")[0] for line in captions(page)] == ["red heart", first]
    assert page.locator("[role=listbox]:visible").count() == 0, "choices that Tab has passed stay open"
    tab_to(page, "#tries button")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(first)
    with answering(page):
        page.keyboard.press("Enter")
    expect(page.locator("#text textarea")).to_have_value(first)


def test_several_sentences_two_checkpoints_words_and_files(page: Page) -> None:
    """All of one answer; then the first comes back."""
    first = take_example(page)
    page.locator("#another").click()
    expect(page.locator("#text textarea")).to_be_focused()
    page.keyboard.type("red heart")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("star")
    choose_weights(page, "another", "#second")
    page.locator("#text textarea").focus()
    with answering(page):
        page.keyboard.press("Enter")
    assert page.locator("#verdict h3").all_inner_texts() == ["sample_nano.safetensors", "another.safetensors"]
    assert page.locator("#verdict .legend .sentence").all_inner_texts() == [
        f"“{text}”" for text in (first, "red heart", "star") * 2
    ]
    left, right = (page.locator(f"{side} img").bounding_box() for side in ("#found", "#other"))
    assert left and right and right["x"] > left["x"] + 100 and abs(left["y"] - right["y"]) < 20
    assert page.locator("#verdict").get_attribute("aria-live") == "polite"
    page.locator("#ask-words").click()
    expect(page.locator("#words .word")).to_have_count(2 * (len(first.split()) + 3))
    assert page.locator("#words h3").all_inner_texts() == ["sample_nano.safetensors", "another.safetensors"]
    expect(page.locator("#words .note").last).to_contain_text("another.safetensors")
    page.locator("#ask-files").click()
    record = page.locator("#files a[download='coco-sample_nano.safetensors.json']")
    with page.expect_download() as download:
        record.click()
    annotations = json.loads(Path(download.value.path()).read_text())["annotations"]
    assert [one["text"] for one in annotations] == [first, "red heart", "star"]
    earlier = page.locator("#tries button").nth(1)
    assert str(earlier.get_attribute("aria-label")).startswith(first)
    with answering(page):
        earlier.click()
    expect(page.locator("#text textarea")).to_have_value(first)
    expect(page.locator("#second input")).to_have_value("nothing")
    expect(page.locator("#other")).to_have_count(0)
    expect(page.locator("#words .word")).to_have_count(0)


def test_a_try_that_came_back_is_marked_until_the_next_answer(page: Page) -> None:
    take_example(page)
    look_for(page, "red heart")
    marked = page.locator("#tries button.selected")
    expect(marked).to_have_count(0)
    with answering(page):
        page.locator("#tries button").nth(1).click()
    expect(marked).to_have_count(1)
    assert marked.get_attribute("aria-label") == captions(page)[1]
    look_for(page, "star")
    expect(page.locator("#tries button")).to_have_count(3)
    expect(marked).to_have_count(0)
    page.wait_for_timeout(500)  # colours change slowly
    colours = page.locator("#tries button").evaluate_all("all => all.map(one => getComputedStyle(one).borderColor)")
    assert len(set(colours)) == 1, "the mouse is still over a tile"


def is_dark(page: Page) -> bool:
    """Return whether the page is opaque and dark."""
    *colour, alpha = page.evaluate(
        "(([red, green, blue, alpha = 1]) => [red, green, blue, alpha].map(Number))"
        "(getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g))"
    )
    assert alpha == 1, "the colour of the body is not what one sees"
    return max(colour) < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_answer_before_the_examples(browser: Browser, address: str, scheme: str) -> None:
    """Of a photograph; nothing is cut off or changes its width."""
    with visiting(browser, address, PHONE, scheme) as page:
        widths = "['.gradio-container', '#ask', '#answer'].map(name => document.querySelector(name).offsetWidth)"
        before = page.evaluate(widths)
        take_example(page, N_DRAWINGS)
        expect(page.locator("#verdict .warning")).to_contain_text("only the drawn shapes")
        page.wait_for_function("Math.abs(document.querySelector('#found').getBoundingClientRect().top) < 100")
        assert page.evaluate(widths) == before
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
        found, examples = (page.locator(place).bounding_box() for place in ("#found", "#examples"))
        assert found and examples and found["y"] < examples["y"]
        keep_picture(page, f"phone-{scheme}")
        assert is_dark(page) == (scheme == "dark")


def test_a_wide_screen_is_dark_if_wanted(browser: Browser, address: str) -> None:
    with visiting(browser, address, scheme="dark") as page:
        take_example(page, N_DRAWINGS)
        keep_picture(page, "wide-dark")
        assert is_dark(page)


def test_the_width_stays_with_and_without_an_answer(page: Page) -> None:
    width = "document.querySelector('#answer').offsetWidth"
    before = page.evaluate(width)
    assert before > 600
    take_example(page)
    assert page.evaluate(width) == before


def test_other_programs_may_ask(address: str, weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    client = Client(address, verbose=False)
    record = client.predict(handle_file(tmp_path / "red.png"), "red\nleft heart", api_name="/segment")
    found = segment(load(weights / "sample_nano.safetensors"), tmp_path / "red.png", "left heart")
    second = record["annotations"][1]
    assert (second["text"], second["area"], second["bbox"]) == ("left heart", found.area, list(found.box))
    assert record["images"][0]["width"] == 40
    with pytest.raises(AppError, match="the sentence is empty"):
        client.predict(handle_file(tmp_path / "red.png"), " ", api_name="/segment")


def test_missing_weights_are_reported(browser: Browser, tmp_path: Path) -> None:
    with served(tmp_path / "nothing") as address, visiting(browser, address) as page:
        take_example(page)
        expect(problem(page)).to_contain_text("there are no weights")


def test_a_taken_port_is_reported(address: str, weights: Path) -> None:
    server = start(weights, int(address.removeprefix(LOCAL)))
    output, _ = server.communicate(timeout=SECONDS)
    assert server.returncode == 1
    assert output.splitlines()[-1].startswith("error: --port ")


def test_it_ends_on_a_signal_and_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    port = free_port()
    server = start(weights, port, TMPDIR=str(tmp_path))
    wait_until_served(server, f"{LOCAL}{port}")
    assert list(tmp_path.glob("crossvlt-*/sample/scenes.json"))
    server.terminate()
    assert server.wait(SECONDS) == 0
    assert not list(tmp_path.glob("crossvlt-*"))


def test_it_cannot_be_shared(weights: Path) -> None:
    command = [sys.executable, "app.py", "--share"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert result.returncode == 2
    assert "unrecognized arguments: --share" in result.stderr
