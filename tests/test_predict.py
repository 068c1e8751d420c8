"""Sentences about photos of one's own: the call, the command, and what it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter

import predict
from bert.tokenizer import Tokens, WordPiece, build_tokenizer, read_vocabulary
from CrossVLT import SegModel
from data.sample.drawings import ONLY_DRAWINGS, knows_only_drawings
from data.sample.make import vocabulary
from errors import UserError
from lib import run_lengths
from lib.asked import ALWAYS
from lib.photo import Pixels
from lib.pictures import results
from lib.requests import find_photos, read_requests
from lib.run_lengths import RunLengths
from lib.variants import MAX_TOKENS
from lib.weights.checkpoint import read_checkpoint
from lib.weights.layouts import store, write_about
from predict import load, segment
from tests.helpers import naming

SIZE = 64
SENTENCES = ["the red circle", "left square"]


@pytest.fixture(scope="module")
def weights(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with logits around zero, whose file also holds its vocabulary."""
    torch.manual_seed(0)
    network = SegModel("nano", "nano", vocab_size=1000)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    words = list(read_vocabulary(sample_root / "vocab.txt"))
    save_file(store(network.state_dict(), "fp32"), path, write_about({"img_size": SIZE}, {}, words))
    return path


@pytest.fixture(scope="module")
def photos(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photos, one of them lying on its side."""
    folder = tmp_path_factory.mktemp("photos")
    files = sorted((sample_root / "images/mscoco/images/train2014").glob("*.jpg"))[:2]
    Image.open(files[0]).resize((160, 120)).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[1]).resize((90, 60)).save(folder / "b.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def loaded() -> Callable[..., predict.Model]:
    """`predict.load`, which keeps what it loaded: that takes longer than to use it."""
    return cache(load)


@pytest.fixture(autouse=True)
def loads_once(loaded: Callable[..., predict.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command load every file once in all tests."""
    monkeypatch.setattr(predict, "load", loaded)


def run(*flags: object) -> None:
    predict.main(list(map(str, flags)))


def test_a_cutout_is_the_object_alone(weights: Path, photos: Path, tmp_path: Path) -> None:
    run("--image", photos / "a.jpg", "--text", *SENTENCES, "--out", tmp_path, "--resume", weights, "--cutout")
    cutouts, masks = (sorted((tmp_path / kind).iterdir()) for kind in ("cutouts", "masks"))
    assert [path.name for path in cutouts] == [path.name for path in masks] and len(masks) == len(SENTENCES)
    for cutout, mask in zip(cutouts, masks, strict=True):
        with Image.open(cutout) as shown, Image.open(mask) as inside:
            assert shown.mode == "RGBA"
            assert np.array_equal(np.asarray(shown)[..., 3], np.asarray(inside))


def test_all_sentences_of_a_photo_are_shown_together(weights: Path, photos: Path, tmp_path: Path) -> None:
    """From the masks that were written, also if an earlier run wrote some of them."""
    flags = ["--image", photos, "--out", tmp_path, "--resume", weights, "--colours", "--text", *SENTENCES]
    run(*flags)
    pictures = sorted((tmp_path / "colours").iterdir())
    assert [path.name for path in pictures] == ["000000_a_2-sentences.png", "000002_b_2-sentences.png"]
    first = predict.open_photo(pictures[0])
    assert first.width >= predict.open_photo(photos / "a.jpg").width
    pictures[0].unlink()
    next((tmp_path / "masks").iterdir()).unlink()
    run(*flags, "--skip-existing")
    assert np.array_equal(np.asarray(predict.open_photo(pictures[0])), np.asarray(first))


def test_what_one_photo_does_ends_no_other_picture_in_colours(weights: Path, photos: Path, tmp_path: Path) -> None:
    """A photo that has become another one, or unreadable, after its masks were made."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    shutil.copy(photos / "a.jpg", folder / "c.jpg")
    flags = ["--image", folder, "--text", *SENTENCES, "--out", tmp_path / "out", "--resume", weights]
    run(*flags)
    Image.new("RGB", (9, 9)).save(folder / "a.jpg")
    (folder / "b.jpg").write_bytes(b"no photo")
    with naming(folder / "a.jpg", folder / "b.jpg", "2 photos"):
        run(*flags, "--colours", "--skip-existing")
    assert [path.name[:8] for path in (tmp_path / "out/colours").iterdir()] == ["000004_c"]


def test_pictures_in_colours_stay_if_nothing_was_made(weights: Path, photos: Path, tmp_path: Path) -> None:
    flags = ["--image", photos, "--text", *SENTENCES, "--out", tmp_path, "--resume", weights, "--colours"]
    run(*flags)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "colours").iterdir()}
    run(*flags, "--skip-existing")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_resumed_run_makes_the_cut_outs_that_are_missing(weights: Path, photos: Path, tmp_path: Path) -> None:
    flags = ["--image", photos / "a.jpg", "--text", *SENTENCES, "--out", tmp_path, "--resume", weights]
    run(*flags)
    run(*flags, "--cutout", "--skip-existing")
    assert len(list((tmp_path / "cutouts").iterdir())) == len(SENTENCES)


def test_lines_of_requests_that_are_gone_go(weights: Path, photos: Path, tmp_path: Path) -> None:
    """A photo that was added before the others moves their numbers."""
    folder, lines = tmp_path / "photos", tmp_path / "found.jsonl"
    shutil.copytree(photos, folder)
    flags = ["--image", folder, "--text", "square", "--out", tmp_path / "out", "--resume", weights, "--json", lines]
    run(*flags)
    shutil.copy(photos / "a.jpg", folder / "0.jpg")
    run(*flags, "--skip-existing")
    found = [json.loads(line)["file_name"] for line in lines.read_text().splitlines()]
    assert sorted(found) == [str(folder / name) for name in ("0.jpg", "a.jpg", "b.jpg")]
    (folder / "b.jpg").unlink()  # so that nothing is left to do
    run(*flags, "--skip-existing")
    found = [json.loads(line)["file_name"] for line in lines.read_text().splitlines()]
    assert sorted(found) == [str(folder / name) for name in ("0.jpg", "a.jpg")]


def test_a_photo_that_was_skipped_is_not_shown_in_colours(weights: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(UserError, match="1 photos were skipped"):
        run("--image", folder, "--text", *SENTENCES, "--out", tmp_path / "out", "--resume", weights, "--colours")
    assert len(list((tmp_path / "out/colours").iterdir())) == 1


def test_a_prediction_is_that_of_the_network(weights: Path, photos: Path, sample_root: Path) -> None:
    """Mask, alignment and score follow from the plain network's own output."""
    model = load(weights)
    found = segment(model, photos / "a.jpg", SENTENCES[0])
    network = SegModel("nano", "nano", vocab_size=1000)
    network.load_state_dict(read_checkpoint(weights).weights)
    photo = predict.open_photo(photos / "a.jpg")
    image = predict.normalize(model.transform.resize_image(photo))[None]
    words = predict.pad(build_tokenizer(str(sample_root / "vocab.txt"))([SENTENCES[0]]), MAX_TOKENS)
    with torch.inference_mode():
        logits, alignment, _ = network.eval()(image, *words, with_alignment=True)
    assert found.mask.shape == (photo.height, photo.width)
    wanted = predict.predicted_mask(logits[0], found.mask.shape)
    assert (found.mask == wanted).mean() > 0.999
    assert [stage.shape for stage in found.alignment] == [tuple(stage.shape[2:]) for stage in alignment]
    for stage, expected in zip(found.alignment, alignment, strict=True):
        assert stage == pytest.approx(expected[0, 0].numpy(), abs=1e-4)
    probability, inside = logits[0].softmax(0)[1], logits[0, 1] > logits[0, 0]
    expected_iou = probability[inside].sum() / (inside.sum() + probability[~inside].sum())
    assert found.score == pytest.approx(expected_iou.item() if found.area else 0, abs=1e-4)


def test_maps_are_cosines_whatever_temperature_and_bias(
    weights: Path, photos: Path, sample_root: Path, tmp_path: Path
) -> None:
    network = SegModel("nano", "nano", vocab_size=1000, align_bias=True)
    network.load_state_dict(read_checkpoint(weights).weights, strict=False)
    network.start_alignment(0.1, 0.04)
    scaled, words = tmp_path / "scaled.safetensors", list(read_vocabulary(sample_root / "vocab.txt"))
    save_file(store(network.state_dict(), "fp32"), scaled, write_about({"img_size": SIZE}, {}, words))
    found, expected = (segment(load(file), photos / "a.jpg", SENTENCES[0]) for file in (scaled, weights))
    for own, other in zip(found.alignment, expected.alignment, strict=True):
        assert own == pytest.approx(other, abs=1e-4)
        assert np.abs(own).max() <= 1 + 1e-5


def test_a_batch_predicts_what_its_requests_predict_alone(weights: Path, photos: Path) -> None:
    model = load(weights)
    opened = [predict.open_photo(photos / name) for name in ("a.jpg", "b.jpg")]
    pairs = [(photo, text) for photo in opened for text in SENTENCES]
    together = predict.segment_batch(model, *zip(*pairs, strict=True))
    for (photo, text), found in zip(pairs, together, strict=True):
        alone = segment(model, photo, text)
        assert (alone.mask == found.mask).mean() > 0.999
        assert alone.score == pytest.approx(found.score, abs=1e-3)


def test_box_and_area_of_a_mask() -> None:
    mask = np.zeros((5, 7), np.uint8)
    empty = predict.Prediction(mask, 0.0, (), "")
    assert (empty.area, empty.box) == (0, (0, 0, 0, 0))
    mask = mask.copy()
    mask[1:3, 2:6] = 1
    assert (empty._replace(mask=mask).area, empty._replace(mask=mask).box) == (8, (2, 1, 4, 2))


def test_words_matter_by_what_the_mask_loses_without_them(weights: Path, photos: Path) -> None:
    model, photo = load(weights), Image.open(photos / "a.jpg").convert("RGB")
    score = segment(model, photo, "square").score
    found = predict.weigh_words(model, photo, "left square")
    assert [word for word, _ in found] == ["left", "square"]
    assert all(0 < abs(loss) <= 1 for _, loss in found)
    assert predict.weigh_words(model, photo, "square") == [("square", pytest.approx(score))]
    words = ["left", *["red"] * (MAX_TOKENS - 2)]  # all that the network reads, and [CLS]
    read, whole = (predict.weigh_words(model, photo, " ".join(text)) for text in (words, [*words, "circle", "square"]))
    assert whole[len(words) :] == [("circle", 0.0), ("square", 0.0)]
    assert whole[0] == ("left", pytest.approx(read[0][1])), "no word that was not read moves up"


def test_networks_for_drawings_say_so_of_photographs(
    weights: Path, photos: Path, sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    drawing = next((sample_root / "images/mscoco/images/train2014").glob("*.jpg"))
    for image, is_told in ((photos / "a.jpg", True), (drawing, False)):
        run("--image", image, "--text", "left square", "--resume", weights, "--out", tmp_path / "out")
        assert (ONLY_DRAWINGS in capsys.readouterr().err) == is_told


def test_a_vocabulary_for_photographs_is_told_from_that_of_drawings() -> None:
    assert knows_only_drawings(vocabulary())
    assert knows_only_drawings(vocabulary(["runway", "tank"]))
    assert not knows_only_drawings([*vocabulary(), "woman"])
    assert not knows_only_drawings(["ship", "harbor"])


def test_the_truncated_end_of_a_long_sentence_is_reported(weights: Path) -> None:
    tokenizer = load(weights).tokenizer
    words = ["left"] * (MAX_TOKENS - 1)
    assert predict.tokenize(tokenizer, " ".join(words)).unread == ""
    assert predict.tokenize(tokenizer, " ".join([*words, "red", "circle"])).unread == "red circle"
    for empty in ("", "  \n"):
        with naming(repr(empty)):
            predict.tokenize(tokenizer, empty)


def test_sentences_are_tokenised_once_and_masks_encoded_once(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sentences about two photos."""
    split, encode = WordPiece.split, run_lengths.encode_mask
    texts, masks = [], []

    def counted_split(tokenizer: WordPiece, text: str) -> Tokens:
        texts.append(text)
        return split(tokenizer, text)

    def counted_encode(mask: Pixels) -> RunLengths:
        masks.append(mask)
        return encode(mask)

    monkeypatch.setattr(WordPiece, "split", counted_split)
    monkeypatch.setattr(WordPiece, "__call__", None)
    monkeypatch.setattr(run_lengths, "encode_mask", counted_encode)
    flags = ["--image", photos, "--text", *SENTENCES, "--out", tmp_path, "--json", tmp_path / "found.json"]
    run(*flags, "--resume", weights)
    assert texts == SENTENCES
    assert len(masks) == 4


def test_a_folder_of_photos(weights: Path, photos: Path, tmp_path: Path) -> None:
    """Every sentence about every photo: pictures of its size, and a data set that COCO's tools read."""
    out = tmp_path / "out"
    flags = ["--image", photos, "--text", *SENTENCES, "--out", out, "--json", out / "found.json"]
    run(*flags, "--resume", weights, "-b", 3)
    names = [f"{n:06d}_{name}.png" for n, name in enumerate(["a_the-red-circle", "a_left-square"])]
    names += [f"{n:06d}_{name}.png" for n, name in enumerate(["b_the-red-circle", "b_left-square"], start=2)]
    for folder in ALWAYS:
        assert sorted(path.name for path in (out / folder).iterdir()) == names
    assert Image.open(out / "masks" / names[3]).size == (60, 90), "upright, at the photo's own size"
    coco = COCO(out / "found.json")
    assert [coco.imgs[number]["file_name"] for number in (1, 2)] == [str(photos / "a.jpg"), str(photos / "b.jpg")]
    for number, name in enumerate(names, start=1):
        written = np.asarray(Image.open(out / "masks" / name))
        assert np.array_equal(coco.annToMask(coco.anns[number]) * 255, written)
        assert coco.anns[number]["area"] == (written > 0).sum()
        more: dict[str, Any] = dict(coco.anns[number])
        assert more["text"] == SENTENCES[(number - 1) % 2]
        assert 0 <= more["score"] <= 1


@pytest.mark.slow  # traces the network
def test_compiling_does_not_change_predictions(
    weights: Path, photos: Path, tmp_path: Path, graphs: CompileCounter
) -> None:
    """Photos of different sizes and a smaller last batch in one graph, alignment maps included."""
    flags = ["--image", photos, "--text", *SENTENCES, "--resume", weights, "-b", 3]
    run(*flags, "--out", tmp_path / "plain")
    run(*flags, "--out", tmp_path / "compiled", "--compile")
    assert graphs.frame_count == 1
    plain, compiled = (sorted((tmp_path / name / "masks").iterdir()) for name in ("plain", "compiled"))
    assert [path.name for path in plain] == [path.name for path in compiled]
    for one, other in zip(plain, compiled, strict=True):
        assert (np.asarray(Image.open(one)) == np.asarray(Image.open(other))).mean() > 0.999
    assert len(list((tmp_path / "compiled" / "alignment").iterdir())) == 4


def test_unreadable_photos_are_named_and_skipped(weights: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    lines = [{"image": "broken.jpg", "text": "left"}, {"image": str(photos / "a.jpg"), "text": "left"}]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    with naming(1, tmp_path / "broken.jpg"):
        run("--jsonl", requests, "--out", tmp_path / "out", "--resume", weights)
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["000001_a_left.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image": "a.jpg", "text": "left"}\n{"image": 1}', "line 2 .*image.*text"),
        ('{"image": "a.jpg", "text": 3}', "line 1: image and text"),
        ("[]", "line 1 .*image.*text"),
        ("{", "line 1 .*JSON"),
        ("\n", r"requests\.jsonl (?!.*line)"),
        ('{"image": "a.jpg", "text": " "}', "line 1: .*empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "requests.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_requests(tmp_path / "requests.jsonl")


@pytest.mark.parametrize("name", ["a\0b.jpg", "a\0/b.jpg", "\ud83d/b.jpg", "\ud83d.jpg", "x" * 5000, "."])
def test_invalid_file_names_are_named(weights: Path, photos: Path, tmp_path: Path, name: str) -> None:
    lines = [{"image": one, "text": "left"} for one in (name, str(photos / "a.jpg"))]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"^1 photos were skipped:\n.* cannot be read as a photo"):
        run("--jsonl", tmp_path / "requests.jsonl", "--out", tmp_path / "out", "--resume", weights)
    assert [path.name for path in (tmp_path / "out/masks").iterdir()] == ["000001_a_left.png"]


def test_long_lists_of_faults_are_shortened(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    requests = [predict.Request(tmp_path / f"{number}.jpg", "left " * (30 + number)) for number in range(50)]
    model = load(weights)
    sentences = predict.tokenize_requests(model, requests)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (21, "… and 30 more like these, 50 in all")
    with pytest.raises(UserError, match="50 photos were skipped") as caught:
        predict.process_requests(model, requests, sentences, 8, results.Writer(tmp_path / "out"))
    assert len(str(caught.value).splitlines()) == 22


def flags_of(photos: Path, weights: Path, out: Path, *more: object) -> list[object]:
    return ["--image", photos, "--text", *SENTENCES, "--resume", weights, "--out", out, *more]


def test_lines_are_written_as_the_run_goes(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends in the middle keeps a line for every mask, with what COCO's format has."""
    run(*flags_of(photos, weights, tmp_path / "coco", "--json", tmp_path / "found.json"))
    wanted = json.loads((tmp_path / "found.json").read_text())["annotations"]
    interrupt_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(*flags_of(photos, weights, tmp_path / "out", "--json", tmp_path / "found.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [record["mask"] for record in found] == sorted(path.name for path in (tmp_path / "out/masks").iterdir())
    assert len(found) == 3
    assert [record["file_name"] for record in found] == [str(photos / f"{name}.jpg") for name in "aab"]
    for key in ("text", "segmentation", "bbox", "area", "score"):
        assert [record[key] for record in found] == [record[key] for record in wanted[:3]]


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writer be interrupted after so many requests."""
    write, written = results.Writer.write, [0]

    def counted(*arguments: Any) -> None:
        if written[0] == count:
            raise KeyboardInterrupt
        written[0] += 1
        write(*arguments)

    monkeypatch.setattr(results.Writer, "write", counted)


def test_a_folder_is_resumed(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What has mask and line is left out; what lost one of them is made again, under the same number."""
    flags = flags_of(photos, weights, tmp_path, "--json", tmp_path / "found.jsonl")
    run(*flags)
    lines = (tmp_path / "found.jsonl").read_text().splitlines(keepends=True)
    masks = sorted((tmp_path / "masks").iterdir())
    masks[1].unlink()
    (tmp_path / "found.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # as a killed run leaves it
    kept = [path.stat().st_ino for path in (masks[0], masks[2])]
    capsys.readouterr()
    run(*flags, "--skip-existing")
    assert "2 of 4 masks are already" in capsys.readouterr().out
    assert [path.stat().st_ino for path in (masks[0], masks[2])] == kept
    assert sorted((tmp_path / "masks").iterdir()) == masks
    assert sorted((tmp_path / "found.jsonl").read_text().splitlines(keepends=True)) == sorted(lines)
    monkeypatch.setattr(predict, "load", None)  # nothing is left to do
    run(*flags, "--skip-existing")
    (tmp_path / "masks" / masks[0].name).unlink()
    with pytest.raises(TypeError):
        run(*flags_of(photos, weights, tmp_path, "--skip-existing"))


def test_only_lines_are_resumed(photos: Path, tmp_path: Path) -> None:
    other = '{"mask": [], "file_name": "", "text": ""}\n'
    for name, content in (("found.json", ""), ("other.jsonl", '{"id": 1}\n'), ("another.jsonl", other)):
        (tmp_path / name).write_text(content)
        with naming("--json", tmp_path / name):
            run(*flags_of(photos, tmp_path, tmp_path / "out", "--json", tmp_path / name, "--skip-existing"))
        assert (tmp_path / name).read_text() == content


def test_a_run_goes_on_after_a_photo_that_is_too_large(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its mask or for its pictures."""
    mask, strip = predict.predicted_mask, results.alignment_strip

    def no_mask(logits: torch.Tensor, size: tuple[int, int]) -> Pixels:
        if size == (90, 60):
            raise MemoryError
        return mask(logits, size)

    def no_strip(photo: Image.Image, *more: Any) -> Image.Image:
        if photo.size != (60, 90):
            raise ValueError("odd")
        return strip(photo, *more)

    for module, name, failing, skipped, done in (
        (predict, "predicted_mask", no_mask, "b.jpg cannot be segmented (MemoryError)", "aa"),
        (results, "alignment_strip", no_strip, "a.jpg cannot be segmented (odd)", "bb"),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
            patch.setattr(module, name, failing)
            run(*flags_of(photos, weights, tmp_path / name))
        assert str(caught.value).endswith(f"1 photos were skipped:\n  {photos}/{skipped}")
        assert [path.name[7] for path in sorted((tmp_path / name / "masks").iterdir())] == list(done)


def test_a_full_disk_ends_the_run(weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the message says how to go on, and what was skipped before."""

    def full(*_: object) -> None:
        raise UserError("No space left on device")

    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos/0.jpg").write_bytes(b"no image")
    monkeypatch.setattr(results, "write_atomically", full)
    with naming("No space left on device", "--skip-existing", tmp_path / "photos/0.jpg"):
        run(*flags_of(tmp_path / "photos", weights, tmp_path / "out", "-b", 2))


@pytest.mark.parametrize("flags", ["", "--image a.jpg", "--text left", "--jsonl a.jsonl --text left"])
def test_images_and_sentences_are_required(flags: str) -> None:
    with naming("--image", "--text", "--jsonl"):
        run(*flags.split(), "--out", "out")


def test_folders_in_a_folder_are_read_on_request(tmp_path: Path) -> None:
    """But not the pictures that an earlier command wrote into a folder there."""
    names = ["b.png", "inner/a.png", "inner/deep/c.jpg", "out/masks/old.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    line = ["--image", str(tmp_path), "--text", "left", "--out", str(tmp_path / "out")]
    args = predict.parse_args([*line, "--recursive"])
    flat, deep = (find_photos(args.image, recursive=more, left_out=args.out) for more in (False, True))
    assert flat == [tmp_path / "b.png"]
    assert deep == [tmp_path / name for name in names[:3]]


def test_folders_in_a_folder_are_not_read_for_nothing(photos: Path, tmp_path: Path) -> None:
    """Into the folder itself, a second run would read the pictures of the first one; lines name every photo."""
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link"):
        with naming("--recursive", f"--out {out}"):
            run("--image", photos, "--text", "left", "--recursive", "--out", out)
    with naming("--recursive", "--jsonl"):
        run("--jsonl", tmp_path / "requests.jsonl", "--recursive", "--out", tmp_path / "out")
