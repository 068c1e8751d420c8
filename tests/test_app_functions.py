"""The functions of app.py without the page: uploads, sentences, weights, answers. Gradio is not needed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from safetensors.torch import save

import app
from CrossVLT import SegModel
from data.sample.make import vocabulary
from errors import UserError
from lib.photo import open_photo
from lib.pictures.overlay import colour_of
from lib.pictures.panels import alignment_strip
from lib.pictures.results import describe_object
from lib.pictures.tiles import CAPTION_HEIGHT
from lib.weights.layouts import store, write_about
from page import answers, html, uploads
from predict import Model, Prediction, load, segment, segment_batch
from refer.download import LOCAL_HOSTS
from tests.helpers import naming


@pytest.fixture
def weights(nano: SegModel, tmp_path: Path) -> Path:
    """A folder with one network."""
    folder = tmp_path / "weights"
    folder.mkdir()
    about = write_about({"img_size": 56}, {}, vocabulary())
    (folder / "sample_nano.safetensors").write_bytes(save(store(nano.state_dict(), "fp32"), about))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> str:
    picture = Image.new("RGB", (1500, 700), "white")
    picture.paste("red", (100, 100, 500, 500))
    picture.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def refusal(path: Path, checking: Callable[[str], object] = uploads.check_upload) -> str:
    with pytest.raises(UserError) as caught:
        checking(str(path))
    assert str(path.parent) not in str(caught.value), "a visitor was told the server's folders"
    return str(caught.value)


def without_tags(content: str) -> tuple[str, list[str]]:
    """Return the text and the tags of HTML."""
    texts: list[str] = []
    tags: list[str] = []

    class Parser(HTMLParser):
        def handle_data(self, data: str) -> None:
            texts.append(data)

        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    parser = Parser()
    parser.feed(content)
    parser.close()
    return "".join(texts), tags


# ---------------------------------------------------------------- weights


def test_weights_are_found_by_name(tmp_path: Path) -> None:
    for name in (
        "b.pth",
        "a.safetensors",
        "sample_nano.safetensors",
        "notes.md",
        "run.json",
        ".c.pth.17.tmp",
        ".d.pth",
    ):
        (tmp_path / name).touch()
    for name in ("hub/model.safetensors", "other/vocab.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "folder.pth").mkdir()
    names = answers.Checkpoints(tmp_path, "cpu").names()
    assert names == ["sample_nano.safetensors", "a.safetensors", "b.pth", "hub"]
    assert answers.Checkpoints(tmp_path / "missing", "cpu").names() == []


@pytest.mark.parametrize("name", ["gone.pth", "../weights/sample_nano.safetensors", ""])
def test_only_weights_of_the_folder_are_loaded(weights: Path, name: str) -> None:
    with naming(weights):
        answers.Checkpoints(weights, "cpu").choose(name)


def test_the_first_checkpoint_is_the_default(weights: Path) -> None:
    assert answers.Checkpoints(weights, "cpu").choose(None) == "sample_nano.safetensors"
    with naming(weights / "nothing", ".pth"):
        answers.Checkpoints(weights / "nothing", "cpu").choose(None)


def test_weights_stay_loaded_until_others_are_asked_for(
    weights: Path, photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = weights / "sample_nano.safetensors"
    (weights / "twin.safetensors").write_bytes(file.read_bytes())
    loaded = []

    def watched(path: Path, **options: Any) -> Model:
        loaded.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(answers, "load", watched)
    checkpoints = answers.Checkpoints(weights, "cpu")
    for name in (file.name, file.name, "twin.safetensors", file.name):
        checkpoints.segment([name], Image.open(photo).convert("RGB"), ["red"])
    os.utime(file, (1, 1))  # as when a training replaces the file
    checkpoints.segment([file.name], Image.open(photo).convert("RGB"), ["red"])
    assert loaded == [file.name, "twin.safetensors", file.name, file.name]


@pytest.fixture
def compared(weights: Path, photo: str) -> tuple[answers.Checkpoints, answers.Found]:
    """An answer of two networks."""
    file = weights / "sample_nano.safetensors"
    (weights / "twin.safetensors").write_bytes(file.read_bytes())
    checkpoints = answers.Checkpoints(weights, "cpu")
    found = answers.answer(checkpoints, photo, "red square", [file.name, "twin.safetensors"], []).found
    assert found
    return checkpoints, found


def test_weighing_words_keeps_both_networks(
    compared: tuple[answers.Checkpoints, answers.Found], photo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, found = compared
    monkeypatch.setattr(answers, "load", lambda *_, **__: pytest.fail("a network was loaded again"))
    (words,) = checkpoints.weigh(found.results[0], open_photo(photo), found.texts)
    assert [word for word, _ in words] == ["red", "square"]
    checkpoints.segment([one.checkpoint for one in found.results], open_photo(photo), found.texts)


def test_words_are_weighed_only_by_the_weights_that_answered(
    compared: tuple[answers.Checkpoints, answers.Found], photo: str
) -> None:
    checkpoints, found = compared
    file = checkpoints.folder / found.results[0].checkpoint
    os.utime(file, (1, 1))  # as when a training replaces the file
    with naming(file.name, "replaced"):
        checkpoints.weigh(found.results[0], open_photo(photo), found.texts)
    file.unlink()
    with naming("no such weights any more"):
        checkpoints.weigh(found.results[0], open_photo(photo), found.texts)


def test_weights_that_vanish_after_they_were_chosen_are_reported(weights: Path, photo: str) -> None:
    with naming("gone.pth"):
        answers.Checkpoints(weights, "cpu").segment(["gone.pth"], open_photo(photo), ["red"])


def test_a_folder_provides_weights_and_vocabulary(nano: SegModel, tmp_path: Path, photo: str) -> None:
    """Words end at line feeds alone: BERT's have characters that other readers of lines take for an end."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").write_bytes(save(store(nano.state_dict(), "fp32"), {"format": "pt"}))
    words = [*vocabulary()[:-1], "a\u2028b"]
    (tmp_path / "hub" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (found,) = answers.Checkpoints(tmp_path, "cpu").segment(["hub"], Image.open(photo).convert("RGB"), ["red"])
    assert found.objects[0].unpack().mask.shape == (700, 1500)


# ---------------------------------------------------------------- uploads and sentences


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_images_are_taken(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / f"image.{suffix}")
    taken = uploads.read_upload(str(tmp_path / f"image.{suffix}"))
    assert (taken.size, taken.mode) == ((30, 20), "RGB")


def test_files_other_than_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words\n" * 100)
    assert ", ".join(uploads.FORMATS) in refusal(tmp_path / "words.png")
    # Readers that start other programs or are seldom tested stay closed.
    Image.new("RGB", (9, 9)).save(tmp_path / "drawing.png", format="EPS")
    assert ", ".join(uploads.FORMATS) in refusal(tmp_path / "drawing.png")
    gone = refusal(tmp_path / "gone.png")
    assert gone.startswith("gone.png ") and ", ".join(uploads.FORMATS) not in gone
    with pytest.raises(UserError, match="image"):
        uploads.read_upload(None)


def test_a_damaged_image_is_reported(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    assert "half.jpg" in refusal(tmp_path / "half.jpg", uploads.read_upload)


def test_large_uploads_are_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "image.png"
    Image.new("RGB", (100, 101)).save(file)
    size = file.stat().st_size
    for reader in (Image.Image, PngImageFile):
        monkeypatch.setattr(reader, "load", lambda _: pytest.fail("pixels were decoded"))
    monkeypatch.setattr(uploads, "MAX_PIXELS", 10_100)
    monkeypatch.setattr(uploads, "MAX_FILE_SIZE", size)
    uploads.check_upload(str(file))
    monkeypatch.setattr(uploads, "MAX_FILE_SIZE", size - 1)
    assert " MB" in refusal(file)
    monkeypatch.setattr(uploads, "MAX_FILE_SIZE", size)
    monkeypatch.setattr(uploads, "MAX_PIXELS", 10_099)
    assert "megapixels" in refusal(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)  # Pillow's own limit is reached at the double
    assert "megapixels" in refusal(file)


@pytest.mark.parametrize(("text", "message"), [("", uploads.HINT), (" \n", uploads.HINT), ("a" * 1001, "1001.*1000")])
def test_sentences_are_checked(text: str, message: str) -> None:
    uploads.check_sentence("a" * 1000)
    with pytest.raises(UserError, match=message):
        uploads.check_sentence(text)


@pytest.mark.parametrize("text", ["<b>bold</b> & 'quoted'", "{{value}} ${1+1} `x` \\n"])
def test_html_and_template_characters_are_escaped(text: str) -> None:
    escaped = html.plain(text)
    assert without_tags(escaped) == (text, [])
    assert not set("{}$`\\<>") & set(escaped)


# ---------------------------------------------------------------- requests that no visitor makes


def test_only_uploads_are_read_or_reported(tmp_path: Path) -> None:
    """Of what a request names, be there something or not; a pipe would hold up everybody."""
    folder = tmp_path / "uploads"
    (folder / "inner").mkdir(parents=True)
    inside, outside = folder / "inner" / "a.png", tmp_path / "secret.png"
    for path in (inside, outside):
        Image.new("RGB", (9, 9)).save(path)
    assert uploads.uploaded({"path": str(inside)}, folder) == str(inside)
    assert uploads.uploaded(None, folder) is None
    (folder / "link.png").symlink_to(outside)
    os.mkfifo(folder / "pipe.png")
    paths: list[Any] = [
        outside,
        tmp_path / "missing.png",
        folder / "link.png",
        folder / "pipe.png",
        folder / "gone.png",
        folder,
    ]
    paths += [f"{folder}/../secret.png", "a\0b", "x" * 5000, "\ud83d", "", 3, None, ["a"], {"path": str(inside)}]
    records = [{"path": path if isinstance(path, int | list | dict | None) else str(path)} for path in paths]
    for upload in [*records, {}, "text", 7, [str(inside)]]:
        with pytest.raises(UserError, match="is not, or no longer, among the uploads") as caught:
            uploads.uploaded(upload, folder)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("text", [None, 7, ["red"], {"a": "b"}])
def test_a_sentence_must_be_a_text(text: object) -> None:
    with pytest.raises(UserError, match="is not a text"):
        uploads.check_sentence(text)


@pytest.mark.parametrize("name", [["a"], {"a": 1}, 7, "../secret.pth", "x" * 5000])
def test_weights_of_odd_names_get_a_message(weights: Path, photo: str, name: Any) -> None:
    found = answers.answer(answers.Checkpoints(weights, "cpu"), photo, "red", [name], [])
    assert "no such weights" in found.verdict


def test_lone_surrogates_are_replaced_in_answers(weights: Path, photo: str) -> None:
    found = answers.answer(answers.Checkpoints(weights, "cpu"), photo, "red \ud83d", ["sample_nano.safetensors"], [])
    assert "“red \ufffd”" in without_tags(found.verdict)[0]
    assert found.tries[0].caption.startswith("red \ufffd: ")


LOCAL = ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "127.0.0.1", "LOCALHOST:8000")


@pytest.mark.parametrize(
    "host", [*LOCAL, "evil.example:7860", "127.0.0.1.evil.example", "192.168.0.7:7860", "", "[::1"]
)
@pytest.mark.parametrize("origin", ["", "own", "http://evil.example", "http://127.0.0.1:3000", "null"])
def test_pages_of_other_sites_are_refused(host: str, origin: str) -> None:
    """By their `Host` and `Origin`."""
    headers = {b"host": host.encode()}
    if origin:
        headers[b"origin"] = (f"http://{host}" if origin == "own" else origin).encode()
    assert app.is_local(headers) == (host in LOCAL and origin in ("", "own"))


@pytest.mark.parametrize(("host", "sent"), [("127.0.0.1:7860", ["page"]), ("evil.example", [403, b"This page"])])
def test_a_refused_request_never_reaches_the_page(host: str, sent: list[object]) -> None:
    async def page(scope: object, receive: object, send: Callable) -> None:
        await send({"status": "page"})

    async def send(message: dict[str, Any]) -> None:
        got.append(message.get("status") or message["body"][:9])

    got: list[object] = []
    asyncio.run(app.LocalOnly(page)({"type": "http", "headers": [(b"host", host.encode())]}, None, send))
    assert got == sent


# ---------------------------------------------------------------- answers


def test_an_answer_shows_what_was_found_before_earlier_tries(weights: Path, photo: str) -> None:
    checkpoints, name = answers.Checkpoints(weights, "cpu"), "sample_nano.safetensors"
    first = answers.answer(checkpoints, photo, " red square ", [name], [])
    second = answers.answer(checkpoints, photo, "white", [name], first.tries)
    found = segment(load(weights / name), photo, "red square")
    assert found.area
    text, tags = without_tags(first.verdict)
    assert f"Expected IoU {html.percent(found.score)}" in text
    assert "“red square”" in text
    assert "del" not in tags
    assert first.outlined[0].size == (answers.SHOWN_SIDE, round(answers.SHOWN_SIDE * 700 / 1500))
    assert [one.caption.split(":")[0] for one in second.tries] == ["white", "red square"]
    assert all(max(one.picture.size) == answers.TRY_SIDE for one in second.tries)
    many = answers.answer(checkpoints, photo, "white", [name], second.tries * answers.MAX_TRIES)
    assert len(many.tries) == answers.MAX_TRIES


def test_the_unread_end_of_a_sentence_is_struck_through(weights: Path, photo: str) -> None:
    text = "red " * 20 + "<i>square</i>"
    verdict = answers.answer(answers.Checkpoints(weights, "cpu"), photo, text, ["sample_nano.safetensors"], []).verdict
    before, _, struck = verdict.partition("<del>")
    assert without_tags(struck.partition("</del>")[0]) == ("<i>square</i>", [])
    assert without_tags(before)[0].endswith("“" + "red " * 20)


def test_an_empty_mask_is_reported() -> None:
    empty = Prediction(np.zeros((4, 6), np.uint8), 0.0, (), "")
    assert "Nothing found" in html.describe_prediction("red", empty)
    whole = Prediction(np.ones((4, 6), np.uint8), 0.815, (), "")
    text, _ = without_tags(html.describe_prediction("red", whole))
    assert "Expected IoU 82\N{NO-BREAK SPACE}%" in text
    assert f"{html.percent(1)} of the image, in a box of 6 × 4 pixels at (0, 0)" in text


@pytest.mark.parametrize("change", [{"text": ""}, {"path": None}, {"names": ["gone.pth"]}])
def test_errors_are_reported_and_the_tries_stay(weights: Path, photo: str, change: dict[str, Any]) -> None:
    tries = [answers.Try(Image.new("RGB", (9, 9)), "earlier", answers.Found("", (), (), is_drawing=False))]
    given: dict[str, Any] = {"path": photo, "text": "red", "names": ["sample_nano.safetensors"], **change}
    found = answers.answer(answers.Checkpoints(weights, "cpu"), **given, tries=tries)
    assert found[:2] == ((), None)
    assert found.tries == tries
    assert without_tags(found.verdict)[1] == ["p", "b"]
    assert 'role="alert"' in found.verdict


def test_captions_are_short_and_keep_the_expected_iou() -> None:
    assert html.caption(" the\nred  heart ", 0.5, "nano") == f"the red heart: {html.percent(0.5)} (nano)"
    assert html.caption("x" * 500, 1.0, "nano") == "x" * html.CAPTION_LENGTH + f" …: {html.percent(1)} (nano)"
    assert html.caption("red " * 50, 1.0, "nano") == "red " * 14 + f"red …: {html.percent(1)} (nano)"


def test_several_sentences_and_networks_are_answered_at_once(weights: Path, photo: str) -> None:
    twin = weights / "twin.safetensors"
    twin.write_bytes((weights / "sample_nano.safetensors").read_bytes())
    checkpoints = answers.Checkpoints(weights, "cpu")
    found = answers.answer(checkpoints, photo, "red square\n\n white ", ["sample_nano.safetensors", twin.name], [])
    assert found.found and found.found.texts == ("red square", "white")
    text, tags = without_tags(found.verdict)
    assert text.count("“red square”") == text.count("“white”") == 2
    assert tags.count("li") == 4 and tags.count("h3") == 2
    for picture in found.outlined:
        assert (np.asarray(picture) == colour_of(0)).all(-1).any()
    assert found.alignment and found.alignment.height >= 4 * (200 + CAPTION_HEIGHT), "each strip says whose it is"
    once = answers.answer(checkpoints, photo, "white", [twin.name, twin.name], [])
    assert len(once.outlined) == 1, "one network beside itself"
    many = answers.answer(checkpoints, photo, "red\n" * 9, [twin.name], [])
    assert "at most 8" in many.verdict


def test_an_earlier_answer_comes_back_as_it_was(weights: Path, photo: str) -> None:
    checkpoints = answers.Checkpoints(weights, "cpu")
    first = answers.answer(checkpoints, photo, "red square", [None], [])
    second = answers.answer(checkpoints, photo, "white\nred", [None], first.tries)
    again = answers.show_again(second.tries, 1)
    assert (again.verdict, again.found, again.tries) == (first.verdict, first.found, second.tries)
    assert again.outlined[0].tobytes() == first.outlined[0].tobytes()
    for number in (2, -1, None, "1"):
        assert "no such try" in answers.show_again(second.tries, number).verdict
    Path(photo).unlink()
    assert "no longer here" in answers.show_again(second.tries, 1).verdict


def test_files_are_mask_cut_out_and_record(weights: Path, photo: str, tmp_path: Path) -> None:
    checkpoints, upright = answers.Checkpoints(weights, "cpu"), open_photo(photo)
    for text, ends in (("red square", [""]), ("red square\nwhite", ["-1", "-2"])):
        found = answers.answer(checkpoints, photo, text, [None], []).found
        assert found
        folder = tmp_path / f"files{len(ends)}"
        folder.mkdir()
        names = {file.name for file in answers.write_files(found, folder)}
        pictures = {f"{kind}{end}.png" for kind in ("mask", "cut-out") for end in ends}
        assert names == pictures | {"coco.json"} | ({"legend.png"} if len(ends) > 1 else set())
        record = json.loads((folder / "coco.json").read_text())
        assert [one["text"] for one in record["annotations"]] == text.splitlines()
        mask = np.asarray(Image.open(folder / f"mask{ends[0]}.png")) > 0
        sentences = text.splitlines()  # together, as the page does: weights that were not trained have ties
        expected = segment_batch(load(weights / "sample_nano.safetensors"), [upright] * len(sentences), sentences)[
            0
        ].mask
        assert np.array_equal(mask, expected) and record["annotations"][0]["area"] == mask.sum()
        cut = np.asarray(Image.open(folder / f"cut-out{ends[0]}.png"))
        assert np.array_equal(cut[..., 3] > 0, mask) and np.array_equal(cut[mask][:, :3], np.asarray(upright)[mask])


def test_files_of_compared_checkpoints_of_one_stem_stay_apart(weights: Path, photo: str, tmp_path: Path) -> None:
    file = weights / "best.safetensors"
    (weights / "sample_nano.safetensors").rename(file)
    (weights / "best.pth").write_bytes(file.read_bytes())
    found = answers.answer(answers.Checkpoints(weights, "cpu"), photo, "red", [None, file.name], [])
    assert found.found
    names = [path.name for path in answers.write_files(found.found, tmp_path)]
    assert len(set(names)) == len(names) == 6
    assert {"coco-best.pth.json", "coco-best.safetensors.json"} <= set(names)
    assert found.tries[0].caption.endswith("(best.pth | best.safetensors)")


@pytest.mark.parametrize(
    "names", [("a?.pth", "a*.pth"), ("A.pth", "a.pth"), (f"{'x' * 240}1.pth", f"{'x' * 240}2.pth")]
)
def test_files_of_similar_names_stay_apart(names: tuple[str, str]) -> None:
    first, second = answers.file_ends(names)
    assert first.casefold() != second.casefold()
    assert all(re.fullmatch(r"[\w.-]{1,110}", end) for end in (first, second))


def test_files_to_download_do_not_wait_for_the_disk(
    weights: Path, photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers.answer(answers.Checkpoints(weights, "cpu"), photo, "red", [None], []).found
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("somebody waits for the disk"))
    assert found and answers.write_files(found, tmp_path)


def test_records_use_the_run_lengths_that_are_there(weights: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers.answer(answers.Checkpoints(weights, "cpu"), photo, "red square", [None], []).found
    expected = describe_object("red square", segment(load(weights / "sample_nano.safetensors"), photo, "red square"))
    monkeypatch.setattr("lib.run_lengths.encode_mask", lambda _: pytest.fail("a mask was encoded again"))
    monkeypatch.setattr(answers.Packed, "unpack", lambda _: pytest.fail("a mask was decoded"))
    assert found
    (record,) = cast("list[dict[str, object]]", answers.coco_of(found, found.results[0])["annotations"])
    assert expected["area"] and record == {"id": 1, "image_id": 1, "category_id": 1} | expected


@pytest.mark.parametrize("size", [(900, 500), (30, 2000), (200, 100)])
def test_thumbnails_are_made_without_a_copy_of_the_photo(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.radial_gradient("L").resize(size)
    expected = photo.copy()
    expected.thumbnail((320, 320), Image.Resampling.BILINEAR)
    copy = Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda one: copy(one) if max(one.size) <= 320 else pytest.fail("a copy"))
    small = answers.thumbnail(photo, 320)
    assert small is not photo
    assert (small.size, small.tobytes()) == (expected.size, expected.tobytes())


def test_the_gallery_is_sent_only_with_a_new_try(weights: Path, photo: str, tmp_path: Path) -> None:
    def values(*given: object, **options: object) -> dict[str, object]:
        return {"given": given, **options}

    gradio = SimpleNamespace(SelectData=object, Image=values, File=values, Gallery=values, skip=values)
    desk = app.Desk(gradio, answers.Checkpoints(weights, "cpu"), [], set(), tmp_path)
    *_, tries, tiles = desk.ask({"path": photo}, "red", "sample_nano.safetensors", "", [])
    assert [caption for _, caption in tiles["value"]] == [tries[0].caption]
    event = SimpleNamespace(index=0)
    for shown, marked in ((desk.ask({"path": photo}, "", None, "", tries), None), (desk.bring_back(tries, event), 0)):
        assert shown[-1] == {"given": (), "selected_index": marked}
        assert shown[-2] == tries
    assert desk.receive({"path": photo})[-1] == {"given": (), "selected_index": None}


def test_words_are_weighed_for_each_network(
    compared: tuple[answers.Checkpoints, answers.Found], photo: str, tmp_path: Path
) -> None:
    checkpoints, found = compared
    desk = app.Desk(SimpleNamespace(SelectData=object), checkpoints, [], set(), tmp_path)
    both = without_tags(desk.weigh(found))[0]
    assert both.count("red ") == both.count("square ") == 2
    assert "sample_nano.safetensors" in both.partition("twin.safetensors")[0]
    alone = desk.weigh(found._replace(results=found.results[1:]))
    assert "<h3>" not in alone and "twin.safetensors" in alone


def test_photographs_for_a_network_of_drawings_are_noted(weights: Path, photo: str) -> None:
    checkpoints = answers.Checkpoints(weights, "cpu")
    for drawings, is_noted in (((), True), ({uploads.digest(photo)}, False)):
        found = answers.answer(checkpoints, photo, "red", [None], [], drawings)
        assert (html.DRAWINGS_NOTE in found.verdict) == is_noted


def test_words_are_shaded_by_what_the_score_loses() -> None:
    content = html.describe_words([[("red", 0.4), ("<heart>", 0.1), ("left", -0.03)]], "<nano>.pth")
    assert [part.partition('"')[0] for part in content.split("opacity: ")[1:]] == ["1.00", "0.25", "0.00"]
    text = without_tags(content)[0]
    assert "red 40 <heart> 10 left -3" in text
    assert "<nano>.pth" in text


def test_photographs_among_the_examples_are_those_of_scikit_image(tmp_path: Path) -> None:
    copied = app.copy_photographs(tmp_path)
    assert [Path(file).name for file, _ in copied] == list(app.PHOTOGRAPHS)
    assert all(open_photo(file).width > 100 for file, _ in copied)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (300, 200)])
def test_alignment_strips_have_a_bounded_size(size: tuple[int, int]) -> None:
    maps = [np.eye(side, dtype=np.float32) for side in (14, 7, 4, 2)]
    strip = alignment_strip(Image.new("RGB", size), "a sentence", maps)
    assert strip.width <= 5 * 404 + 70
    assert strip.height <= 222


def test_alignment_maps_share_one_scale() -> None:
    """A map almost without differences looks like it, and is not stretched over all colours."""
    maps = [np.linspace(low, high, 4, dtype=np.float32).reshape(2, 2) for low, high in ((-0.9, -0.899), (-1, 1))]
    strip = np.asarray(alignment_strip(Image.new("RGB", (200, 200), "white"), "a sentence", maps)).astype(int)
    flat, full = (strip[30:, left + 10 : left + 190].reshape(-1, 3) for left in (204, 408))
    assert (flat.max(0) - flat.min(0)).max() <= 2
    assert (full.max(0) - full.min(0)).max() > 100
    top, bottom = strip[22 + 2, 612], strip[-3, 612]
    assert top[0] > bottom[0] + 100, "yellow is above, violet below"


def test_examples_are_sample_images_with_their_sentences(tmp_path: Path) -> None:
    examples = app.make_examples(tmp_path / "sample")
    assert len(examples) == app.N_DRAWINGS
    assert len({file for file, _ in examples}) == app.N_DRAWINGS
    words = set(vocabulary())
    for file, text in examples:
        uploads.read_upload(file)
        assert set(text.split()) <= words


# ---------------------------------------------------------------- the command


def test_without_gradio_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "elsewhere")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(UserError, match=r"pip install -r requirements-web\.txt"):
        app.import_gradio(tmp_path)
    assert (os.environ["GRADIO_ANALYTICS_ENABLED"], os.environ["GRADIO_TEMP_DIR"]) == ("False", str(tmp_path))


@pytest.mark.parametrize(("before", "after"), [("", LOCAL_HOSTS), ("a.org", ("a.org", *LOCAL_HOSTS))])
def test_no_proxy_is_used_for_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: tuple[str, ...]
) -> None:
    for name in ("no_proxy", "NO_PROXY", "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, before)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError):
        app.import_gradio(tmp_path)
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == ",".join(after)


@pytest.mark.parametrize(
    "flags", [["--share"], ["--port", "80"], ["--port", "70000"], ["--port", "x"], ["--server_name", "0.0.0.0"]]
)
def test_flags_that_would_serve_others_or_make_no_sense_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit):
        app.parse_args(flags)


def test_a_network_without_alignment_shows_no_maps(tmp_path: Path, photo: str) -> None:
    network = SegModel("nano", "nano", vocab_size=1000, alignment=False)
    about = write_about({"img_size": 56}, {}, vocabulary())
    (tmp_path / "unaligned.safetensors").write_bytes(save(store(network.state_dict(), "fp32"), about))
    found = answers.answer(answers.Checkpoints(tmp_path, "cpu"), photo, "red circle", ["unaligned.safetensors"], [])
    assert found.outlined
    assert found.alignment is None
