"""Data of one's own in JSONL files, and several data sets mixed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import score as score_script
import test as test_script
import train as train_script
from bert.tokenizer import build_tokenizer
from data.cache import open_cache
from data.dataset_refer_bert import ReferDataset
from data.loaders import open_index
from data.transforms import PairTransform
from errors import UserError
from lib.evaluation.runs import read_runs
from lib.evaluation.tables import read_result, score_table
from lib.photo import open_photo
from refer import jsonl, prepare
from refer.files import Record
from refer.jsonl import read_jsonl
from refer.mixed import IDS_APART, mix
from refer.refer import REFER, Index
from refer.splits import title_of
from tests.helpers import naming

HEIGHT, WIDTH = 6, 9
BOX = np.zeros((HEIGHT, WIDTH), np.uint8)
BOX[1:4, 2:7] = 1
POLYGON = [2, 1, 7, 1, 7, 4, 2, 4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, and a mask of the first as a picture."""
    (tmp_path / "photos").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "photos" / name)
    Image.fromarray(BOX * 7).save(tmp_path / "mask.png")
    return tmp_path


def runs() -> dict:
    code = coco_mask.encode(np.asfortranarray(BOX))
    return code | {"counts": code["counts"].decode()}


def write(path: Path, *records: dict) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def line(mask: dict, **more: object) -> dict:
    return {"image": "photos/1.png", "sentences": ["the box", "grey one"]} | mask | more


@pytest.mark.parametrize("mask", [{"polygons": [POLYGON]}, {"rle": runs()}, {"rle": [runs()]}, {"mask": "mask.png"}])
def test_every_kind_of_mask(folder: Path, sample_root: Path, mask: dict) -> None:
    index = read_jsonl([write(folder / "train.jsonl", line(mask))])
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    dataset = ReferDataset(index, "train", tokenizer, PairTransform(8, resize_mask=False))
    assert [expression.text for expression in dataset.expressions] == ["the box", "grey one"]
    assert np.array_equal(dataset[1].target.numpy(), BOX)
    assert dataset.image_path(0) == folder / "photos" / "1.png"
    assert index.getRefBox(1) == [2, 1, 5, 3]


def test_overlapping_parts_follow_the_index(folder: Path) -> None:
    file = write(folder / "train.jsonl", line({"polygons": [POLYGON, POLYGON]}))
    plain, joined = read_jsonl([file]), read_jsonl([file], "object")
    assert not plain.getMask(plain.Refs[1])["mask"].any()
    assert np.array_equal(joined.getMask(joined.Refs[1])["mask"], BOX)
    assert mix([joined])[0].overlap == "object"


def test_splits_are_those_of_lines_or_files(folder: Path) -> None:
    mask = {"polygons": [POLYGON]}
    train = write(folder / "train.jsonl", line(mask), line(mask, split="val"), line(mask, image="photos/2.png"))
    val = write(folder / "val.jsonl", line(mask), line(mask, split="test"))
    index = read_jsonl([train, val])
    assert [len(index.getRefIds(split=split)) for split in ("train", "val", "test")] == [2, 2, 1]
    assert len(index.Imgs) == 2 and len(index.Sents) == 10
    with naming("'testA'", "train, val, test"):
        index.getRefIds(split="testA")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 2 .*JSON"),
        ("[]", "line 2: .* list"),
        ('{"image": 3}', 'line 2: "image"'),
        (json.dumps(line({"polygons": [POLYGON]}, sentences=[])), 'line 2: "sentences"'),
        (json.dumps(line({"polygons": [POLYGON]}, sentences=["a box", " "])), 'line 2: "sentences"'),
        (json.dumps(line({"polygons": [POLYGON]}, split="")), 'line 2: "split"'),
        (json.dumps(line({"polygons": [POLYGON]}, split=1)), 'line 2: "split"'),
        (json.dumps(line({})), "line 2: .*polygons, rle, mask.* none"),
        (json.dumps(line({"polygons": [], "mask": "mask.png"})), "line 2: .*polygons, rle, mask.* polygons, mask"),
        (json.dumps(line({"polygons": []})), "line 2 .*mask: .*empty"),
        (json.dumps(line({"polygons": [["x"] * 6]})), "line 2 .*mask: a polygon"),
        (json.dumps(line({"rle": {"size": [1, 1], "counts": "1"}})), "line 2 .*mask"),
        (json.dumps(line({"rle": 3})), 'line 2: "rle"'),
        (json.dumps(line({"mask": "none.png"})), r"line 2: the mask .*none\.png"),
        (json.dumps(line({"mask": "small.png"})), r"line 2: .*small\.png .*1×1.*9×6"),
        (json.dumps(line({"mask": "mask.png"}, image="none.png")), r"line 2: the image .*none\.png"),
    ],
)
def test_a_broken_line_is_named(folder: Path, content: str, message: str) -> None:
    Image.new("L", (1, 1)).save(folder / "small.png")
    good = json.dumps(line({"mask": "mask.png"}))
    (folder / "train.jsonl").write_text(f"{good}\n{content}\n")
    with pytest.raises(UserError, match=message):
        read_jsonl([folder / "train.jsonl"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_jsonl([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with naming("--data", tmp_path / "empty.jsonl"):
        read_jsonl([tmp_path / "empty.jsonl"])


# ---------------------------------------------------------------- photos and masks

DEEP = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 1200).astype(np.uint16)
CLEAR = np.dstack([np.full((HEIGHT, WIDTH, 3), 200), 255 * BOX]).astype(np.uint8)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("mask", [{"polygons": [POLYGON]}, {"mask": "mask.png"}, {"rle": runs()}])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photos_are_read_as_they_are_annotated(folder: Path, sample_root: Path, mask: dict, orientation: int) -> None:
    """Upright, in whatever orientation a phone stored them: the box is red and under its mask."""
    seen = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    seen[BOX.astype(bool)] = (255, 0, 0)
    turns = {3: 2, 6: 1, 8: 3}  # quarters, counterclockwise, that exif takes back
    Image.fromarray(np.rot90(seen, turns[orientation])).save(folder / "photos/1.png", exif=turned(orientation))
    index = read_jsonl([write(folder / "train.jsonl", line(mask))])
    dataset = ReferDataset(
        index, "train", build_tokenizer(str(sample_root / "vocab.txt")), PairTransform(8, resize_mask=False)
    )
    image, inside = dataset.load(0)
    assert np.array_equal(np.asarray(image), seen)
    assert np.array_equal(inside, BOX)


@pytest.mark.parametrize("photo", [Image.fromarray(DEEP), Image.fromarray(CLEAR), Image.fromarray(CLEAR).convert("P")])
def test_training_reads_photos_as_prediction_does(folder: Path, sample_root: Path, photo: Image.Image) -> None:
    photo.save(folder / "photos/1.png")
    index = read_jsonl([write(folder / "train.jsonl", line({"mask": "mask.png"}))])
    dataset = ReferDataset(index, "train", build_tokenizer(str(sample_root / "vocab.txt")), PairTransform(8))
    assert np.array_equal(np.asarray(dataset.load(0)[0]), np.asarray(open_photo(folder / "photos/1.png")))


def test_a_cache_of_photos_as_stored_is_refused(folder: Path) -> None:
    """One made before EXIF orientation was applied, even if all photos are upright."""
    index = read_jsonl([write(folder / "train.jsonl", line({"mask": "mask.png"}))])
    index.as_seen = False
    open_cache(folder / "cache.h5", index, 8, 1)
    index.as_seen = True
    with pytest.raises(UserError, match=r"cache\.h5 was built from other data"):
        open_cache(folder / "cache.h5", index, 8, 1)


def test_a_state_of_photos_as_stored_is_another_data_set(folder: Path, sample_root: Path) -> None:
    index = read_jsonl([write(folder / "train.jsonl", line({"mask": "mask.png"}))])
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    prints = set()
    for index.as_seen in (False, True):
        prints.add(ReferDataset(index, "train", tokenizer, PairTransform(8)).fingerprint())
    assert len(prints) == 2


@pytest.mark.parametrize("picture", [Image.new("L", (WIDTH, HEIGHT)), Image.new("LA", (WIDTH, HEIGHT), (255, 0))])
def test_a_mask_that_covers_nothing_is_an_error(folder: Path, picture: Image.Image) -> None:
    picture.save(folder / "nothing.png")
    file = write(folder / "train.jsonl", line({"mask": "mask.png"}), line({"mask": "nothing.png"}))
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: the mask .*nothing\.png"):
        read_jsonl([file])


def test_masks_that_cover_everything_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (WIDTH, HEIGHT), (0, 0, 1)).save(folder / "all.png")
    good = line({"mask": "mask.png"})
    read_jsonl([write(folder / "train.jsonl", good)])
    assert "whole image" not in capsys.readouterr().out
    read_jsonl([write(folder / "train.jsonl", good, *[line({"mask": "all.png"})] * 7)])
    note = capsys.readouterr().out
    assert "7 masks cover the whole image" in note
    assert "train.jsonl, line 2: " in note and "line 6: " in note and "line 7: " not in note and "and 2 more" in note


def test_photos_in_train_and_in_another_split_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same file, under another spelling too, and copies of it."""
    mask = {"polygons": [POLYGON]}
    for name, grey in (("1", 1), ("2", 2), ("3", 3), ("4", 4)):
        Image.new("L", (WIDTH, HEIGHT), grey).save(folder / f"photos/{name}.png")
    (folder / "photos/copy.png").write_bytes((folder / "photos/2.png").read_bytes())
    train = write(folder / "train.jsonl", *(line(mask, image=f"photos/{n}.png") for n in "123"))
    others = [("./photos/1.png", "val"), ("photos/copy.png", "val"), ("photos/3.png", "test"), ("photos/4.png", "val")]
    val = write(folder / "val.jsonl", *(line(mask, image=image, split=split) for image, split in others))
    read_jsonl([train, val])
    notes = [one for one in capsys.readouterr().out.splitlines() if "both in train" in one]
    assert len(notes) == 2
    assert "1 photo is both in train and in test" in notes[0] and "3.png" in notes[0]
    assert "2 photos are both in train and in val" in notes[1] and "copy.png" in notes[1] and "4.png" not in notes[1]
    read_jsonl([val])
    assert "both in train" not in capsys.readouterr().out


# ---------------------------------------------------------------- mixed


def arguments(root: Path, dataset: str, split_by: str, files: list[Path] | None = None) -> argparse.Namespace:
    return argparse.Namespace(
        refer_data_root=root, dataset=dataset, splitBy=split_by, data_files=files, overlap="background"
    )


def test_mixed_training_never_shows_a_test_image(sample_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even if a data set trains on images that another tests on: here the val images of one are the other's train."""
    one, other = REFER(sample_root, "refcoco", "unc"), REFER(sample_root, "refcocog", "umd")
    shown = sorted({ref["image_id"] for ref in one.data["refs"] if ref["split"] == "train"})[:3]
    moved = [ref | {"split": "val"} if ref["image_id"] in shown else ref for ref in other.data["refs"]]
    other.data["refs"] = moved
    mixed, left_out = mix([one, other])
    train = mixed.loadRefs(mixed.getRefIds(split="train"))
    tested = {ref["image_id"] for ref in mixed.data["refs"] if ref["split"] != "train"}
    assert set(shown) <= tested and not tested & {ref["image_id"] for ref in train}
    assert left_out == {"images": 3, "objects": sum(ref["image_id"] in shown for ref in one.data["refs"])}
    n_refs = sum(len(index.data["refs"]) for index in (one, other))
    assert len(mixed.Refs) == len(mixed.data["refs"]) == n_refs - left_out["objects"]
    assert len(mixed.Sents) == sum(len(ref["sentences"]) for ref in mixed.data["refs"]), "no id is used twice"
    first, second = (next(ref for ref in mixed.data["refs"] if in_range(ref["ref_id"])) for in_range in RANGES)
    assert np.array_equal(mixed.getMask(first)["mask"], one.getMask(first)["mask"])
    original = second | {"ref_id": second["ref_id"] - IDS_APART}
    assert np.array_equal(mixed.getMask(second)["mask"], other.getMask(original)["mask"])


RANGES = (lambda number: number < IDS_APART, lambda number: number >= IDS_APART)


@pytest.mark.parametrize(("split_by", "ways"), [("unc", "unc,unc,umd"), ("unc,unc,umd", "unc,unc,umd")])
def test_flags_of_a_mixed_training(
    sample_root: Path, capsys: pytest.CaptureFixture[str], split_by: str, ways: str
) -> None:
    index = open_index(arguments(sample_root, "refcoco,refcoco+,refcocog", split_by))
    assert (index.dataset, index.splitBy) == ("refcoco,refcoco+,refcocog", ways)
    assert "refcoco (unc), refcoco+ (unc), refcocog (umd) mixed; left out of train" in capsys.readouterr().out
    assert len(index.getRefIds(split="val")) > len(REFER(sample_root).getRefIds(split="val"))


@pytest.mark.parametrize(
    ("dataset", "split_by", "message"),
    [
        ("refcoco,refcocog", "unc,umd,unc", "--splitBy unc,umd,unc has 3 .* 2 .*refcoco,refcocog"),
        ("refcoco,nothing", "unc", "nothing split by unc"),
        ("jsonl", "unc", "--dataset jsonl .*--data"),
    ],
)
def test_flags_that_do_not_fit(sample_root: Path, dataset: str, split_by: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_index(arguments(sample_root, dataset, split_by))


def test_files_need_their_data_set(sample_root: Path, folder: Path) -> None:
    with naming("--dataset jsonl", "--data"):
        open_index(arguments(sample_root, "refcoco", "unc", [folder / "train.jsonl"]))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("images", {"file_name": "other.jpg"}, "images .* file_name"),
        ("annotations", {"segmentation": [[0, 0, 9, 0, 9, 9]]}, "annotations .* segmentation"),
        ("categories", {"name": "tree"}, "categories .* name"),
    ],
)
def test_contradictory_ids_are_not_mixed(sample_root: Path, kind: str, change: dict, message: str) -> None:
    """Else objects of one data set would get masks of the other."""
    one, other = REFER(sample_root), REFER(sample_root, "refcocog", "umd")
    shared = {record["id"] for record in records_of(one, kind)}
    next(record for record in records_of(other, kind) if record["id"] in shared).update(change)
    with pytest.raises(UserError, match=message):
        mix([one, other])


def test_files_in_linked_folders_find_their_photos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """After a link, ".." leads to the parent of its target, not to that of the link."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deep"
    elsewhere.mkdir()
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "photos").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(elsewhere / "photos" / "1.png")
    Image.new("RGB", (WIDTH, HEIGHT), "blue").save(folder / "photos" / "1.png")
    files = [
        write(place / name, line({"rle": runs()}))
        for place, name in ((folder / "linked", "a.jsonl"), (folder, "b.jsonl"))
    ]
    for order in (files, files[::-1]):
        refer = read_jsonl(order)
        images = [Path(refer.IMAGE_DIR, image["file_name"]) for image in refer.data["images"]]
        assert [open_photo(image).getpixel((0, 0)) for image in images] == [
            (255, 0, 0) if file.name == "a.jsonl" else (0, 0, 255) for file in order
        ]
    assert read_jsonl(files).data["images"][0]["file_name"] == "photos/1.png"


def test_a_file_named_twice_is_refused(folder: Path) -> None:
    train = write(folder / "train.jsonl", line({"polygons": [POLYGON]}))
    with naming("--data", train):
        read_jsonl([train, folder / "photos/../train.jsonl"])


# ---------------------------------------------------------------- from the command line to scores


@pytest.mark.slow  # trains and tests
@pytest.mark.parametrize("with_cache", [False, True])
def test_training_and_testing_on_the_users_files(folder: Path, sample_root: Path, with_cache: bool) -> None:
    """Also from a cache; a resumed training refuses data that changed since."""
    mask = {"polygons": [POLYGON]}
    train = write(folder / "train.jsonl", *[line(mask)] * 2, *[line(mask, image="photos/2.png")] * 2)
    val = write(folder / "val.jsonl", line({"mask": "mask.png"}))
    more = ["--cache", folder / "cache.h5"] if with_cache else []
    flags = ["--dataset", "jsonl", "--data", train, val, "--img_size", 32, *more]
    out = folder / "run"
    call(train_script, *flags, *data_flags(sample_root), *NANO, "--epochs", 1, "--output-dir", out)
    weights = ["--resume", out / "last_jsonl.pth", "--json", folder / "scores.json", "-j", 0, "--device", "cpu"]
    call(test_script, *flags, *weights)
    assert json.loads((folder / "scores.json").read_text())["n_expressions"] == 2
    with naming("own data", "'test'", "train, val"):
        call(test_script, *flags, *weights, "--split", "test")


NANO = ["--swin_type", "nano", "--bert_type", "nano", "-b", "4", "-j", "0", "--device", "cpu"]


def data_flags(root: Path) -> list[object]:
    return ["--refer_data_root", root, "--bert_tokenizer", root / "vocab.txt"]


def records_of(index: Index, kind: str) -> list[Record]:
    by_kind: dict[str, Any] = {**index.data}
    found: list[Record] = by_kind[kind]
    return found


def call(script: ModuleType, *flags: object) -> None:
    script.main(list(map(str, flags)))


# ---------------------------------------------------------------- checking


def check(*files: Path) -> None:
    prepare.main(["--dataset", "jsonl", "--check", "--data", *map(str, files)])


def test_a_check_lists_all_mistakes_with_file_and_line(folder: Path) -> None:
    (folder / "photos" / "cut.png").write_bytes((folder / "photos" / "1.png").read_bytes()[:40])
    Image.fromarray(BOX[:3]).save(folder / "small.png")
    file = write(
        folder / "train.jsonl",
        line({"mask": "mask.png"}),
        line({"mask": "small.png"}),
        line({"mask": "mask.png"}, image="photos/none.png"),
        line({"mask": "mask.png"}, image="photos/cut.png"),
        line({"mask": "mask.png"}, sentences=[]),
        line({"polygons": [[1, 2]]}),
    )
    file.write_text(file.read_text() + "{\n")
    with pytest.raises(UserError) as caught:
        check(file, folder / "missing.jsonl")
    for number in range(2, 8):
        assert f"{file}, line {number}" in str(caught.value)
    assert f"{file}, line 1:" not in str(caught.value) and "missing.jsonl cannot be read" in str(caught.value)


def test_a_check_of_valid_data_counts_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(folder / "train.jsonl", line({"mask": "mask.png"}), line({"rle": runs()}, split="val"))
    before = sorted(folder.rglob("*"))
    check(file)
    assert "train: 1 valid objects\nval: 1 valid objects" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before


def test_a_check_refuses_what_training_refuses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file named twice, also by another path, and an empty file beside a full one; each object counts once."""
    file = write(folder / "train.jsonl", line({"mask": "mask.png"}))
    (folder / "link.jsonl").symlink_to(file)
    (folder / "val.jsonl").write_text("\n")
    for others in ([file], [folder / "link.jsonl"], [folder / "val.jsonl"]):
        with pytest.raises(UserError) as refused:
            read_jsonl([file, *others])
        with pytest.raises(UserError) as checked:
            check(file, *others)
        assert str(refused.value) in str(checked.value)
        assert ": 1 valid objects" in capsys.readouterr().out


def test_a_check_logs_the_notes_of_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """About the valid lines."""
    Image.new("L", (WIDTH, HEIGHT), 1).save(folder / "all.png")
    train = write(folder / "train.jsonl", line({"mask": "all.png"}), line({"mask": "none.png"}))
    val = write(folder / "val.jsonl", line({"mask": "mask.png"}))
    with pytest.raises(UserError, match="cannot be read"):
        check(train, val)
    notes = [text for text in capsys.readouterr().out.splitlines() if text.startswith("note")]
    write(train, line({"mask": "all.png"}))
    read_jsonl([train, val])
    assert len(notes) == 2
    assert notes == capsys.readouterr().out.splitlines()


def test_a_check_decodes_a_broken_photo_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that names it is listed."""
    (folder / "photos" / "cut.png").write_bytes((folder / "photos" / "1.png").read_bytes()[:40])
    decoded = []

    def note_and_open(path: Path) -> Image.Image:
        decoded.append(path.name)
        return open_photo(path)

    monkeypatch.setattr(jsonl, "open_photo", note_and_open)
    lines = [line({"rle": runs()}, image="photos/cut.png")] * 20
    file = write(folder / "train.jsonl", *lines, line({"rle": runs()}))
    with pytest.raises(UserError) as caught:
        check(file)
    assert all(f"{file}, line {number}:" in str(caught.value) for number in range(1, 21))
    assert sorted(decoded) == ["1.png", "cut.png"]


@pytest.mark.parametrize("flags", [["--check"], ["--data", "a.jsonl"]])
def test_own_data_are_checked_only(flags: list[str]) -> None:
    with pytest.raises(UserError, match="--dataset jsonl"):
        prepare.parse_args(["--dataset", "jsonl", *flags])


def test_own_data_have_no_way_of_splitting_in_their_name() -> None:
    assert title_of("jsonl", "unc") == "own data"
    assert title_of("refcoco", "unc") == "refcoco (unc)"


# ---------------------------------------------------------------- a name for it

OWN = "--dataset jsonl --data train.jsonl val.jsonl"


def test_a_name_is_for_own_data_and_unlike_published_ones() -> None:
    assert train_script.parse_args([*OWN.split(), "--name", "birds_2+b"]).name == "birds_2+b"
    assert train_script.parse_args(OWN.split()).name is None
    for script, more in ((train_script, []), (test_script, ["--resume", "x.pth"]), (score_script, [__file__])):
        with naming("--name birds", "refcoco", "--dataset jsonl"):
            script.parse_args(["--name", "birds", *more])
        with naming("--name refcoco+"):
            script.parse_args([*OWN.split(), "--name", "refcoco+", *more])


@pytest.mark.parametrize(
    ("name", "odd"), [("a/b", "'/'"), ("../a", "'.'"), ("a.1", "'.'"), ("-a", "'-'"), ("é", "'é'"), ("a" * 65, "65")]
)
def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(
    name: str, odd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dot numbers older states."""
    with pytest.raises(SystemExit):
        train_script.parse_args([*OWN.split(), f"--name={name}"])
    told = capsys.readouterr().err
    assert "--name" in told and odd in told and "letters" in told


def test_a_split_that_own_data_lack_is_no_way_of_splitting(folder: Path) -> None:
    index = read_jsonl([write(folder / "train.jsonl", line({"mask": "mask.png"}))])
    with pytest.raises(UserError, match=r"'val' of own data, only train\.") as caught:
        index.getRefIds(split="val")
    assert "jsonl" not in str(caught.value)


@pytest.mark.slow  # trains and tests
def test_files_tables_and_reports_bear_the_name(
    folder: Path, sample_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights tell it to the test; a training under another name is another one."""
    mask = {"polygons": [POLYGON]}
    train = write(folder / "train.jsonl", *[line(mask)] * 2, *[line(mask, image="photos/2.png")] * 2)
    val = write(folder / "val.jsonl", line(mask))
    flags = ["--dataset", "jsonl", "--data", train, val, "--img_size", 32, *data_flags(sample_root), *NANO[4:]]
    training = [*flags, *NANO[:4], "--epochs", 1, "--output-dir", folder / "run"]
    call(train_script, *training, "--name", "birds")
    printed = capsys.readouterr().out
    assert "data birds: train 4 objects" in printed and "--splitBy" not in printed
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"best_birds.pth", "last_birds.pth", "log_birds.jsonl", "run_birds.json"} <= names
    assert not any("jsonl" in Path(name).stem for name in names)
    assert next(iter(read_runs([folder / "run"]).values())).options["name"] == "birds"
    with naming("name was birds", "None"):
        call(train_script, *training, "--resume", folder / "run" / "last_birds.pth", "--output-dir", folder / "other")

    weights = ["--resume", folder / "run" / "last_birds.pth", "--report", folder / "report"]
    call(test_script, *flags, *weights, "--json", folder / "a.json", "--predictions", folder / "masks.jsonl")
    assert "birds val: 2 expressions" in capsys.readouterr().out
    page = (folder / "report" / "index.html").read_text()
    assert "birds val" in page and "jsonl val" not in page
    call(test_script, *flags, *weights[:2], "--name", "herons", "--json", folder / "b.json")
    assert "herons val: 2 expressions" in capsys.readouterr().out
    table = score_table([read_result(folder / f"{name}.json") for name in "ab"], None)
    assert "birds val" in table and "herons val" in table
    own = ["--dataset", "jsonl", "--data", train, val, "--img_size", 32]
    call(score_script, folder / "masks.jsonl", folder / "a.json", *own, "--name", "birds")
    assert "birds val: 2 expressions" in capsys.readouterr().out
