"""RRSIS-D: REFER's files on images of which some have another size than their mask; and the files of other groups."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.cache import open_cache
from data.dataset_refer_bert import ReferDataset
from data.transforms import PairTransform
from errors import UserError
from lib.run_lengths import encode_mask
from refer import prepare, rows
from refer.check import check_dataset
from refer.datasets import DATA_SETS
from refer.open import open_data_set
from refer.refer import Index
from refer.rows import Size
from tests.helpers import naming

SIDE = 20
IMAGES = Path("images/rrsisd/JPEGImages")
SPLITS = ("train", "train", "train", "val", "test")  # of object n: a square of n + 1 pixels in image n


def square(number: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4 : 5 + number, 6 : 7 + number] = 1
    return mask


def name(number: int) -> str:
    return f"{number:05}.jpg"


def records() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    refs, annotations, images = [], [], []
    for number, split in enumerate(SPLITS, start=1):
        ids = {"image_id": number, "category_id": 1 + number % 2}
        sentence = {"sent_id": number, "raw": f"The ship {number}.", "sent": "", "tokens": ["ship"]}
        refs.append({"ref_id": number, "ann_id": number, "split": split, "sentences": [sentence]} | ids)
        code = encode_mask(square(number))
        annotations.append({"id": number, "segmentation": [code], "bbox": [6, 4, 1, 1], "iscrowd": 0} | ids)
        images.append({"id": number, "file_name": name(number), "height": SIDE, "width": SIDE})
    categories = [{"id": 1, "name": "ship"}, {"id": 2, "name": "bridge"}]
    return refs, {"images": images, "annotations": annotations, "categories": categories}


def save_image(root: Path, number: int, size: tuple[int, int] = (SIDE, SIDE)) -> None:
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / IMAGES / name(number))


def write_rrsisd(root: Path) -> None:
    refs, instances = records()
    (root / "rrsisd").mkdir()
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "rrsisd/instances.json").write_text(json.dumps(instances))
    for number in range(1, len(SPLITS) + 1):
        save_image(root, number)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set in its owners' layout; five objects count as complete."""
    write_rrsisd(tmp_path)
    counts = {split: (SPLITS.count(split), SPLITS.count(split)) for split in SPLITS}
    monkeypatch.setitem(DATA_SETS["rrsisd"].counts, "unc", counts)
    return tmp_path


def opened(root: Path) -> Index:
    return open_data_set(root, "rrsisd", "unc")


def test_masks_of_the_images_size_stay_as_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = opened(root)
    assert index.data["annotations"] == records()[1]["annotations"]
    assert [np.array_equal(index.getMask(ref)["mask"], square(number)) for number, ref in index.Refs.items()] == [
        True
    ] * 5
    assert "resized" not in capsys.readouterr().out
    assert check_dataset(index, 1) == []


@pytest.mark.parametrize("recorded", [(SIDE, SIDE), (SIDE, SIDE + 1)], ids=["as the mask", "as the image"])
def test_a_mask_of_another_size_is_resized_and_logged(
    root: Path, capsys: pytest.CaptureFixture[str], recorded: tuple[int, int]
) -> None:
    """Whichever size the record of the image has; the nearest pixel counts."""
    save_image(root, 2, (SIDE, SIDE + 1))
    file = root / "rrsisd/instances.json"
    instances = json.loads(file.read_text())
    instances["images"][1] |= {"width": recorded[0], "height": recorded[1]}
    file.write_text(json.dumps(instances))
    index = opened(root)
    said = capsys.readouterr().out
    assert "rrsisd: 1 mask" in said and "00002.jpg" in said and "20×21" in said and "20×20" in said
    mask = index.getMask(index.Refs[2])["mask"]
    rows = ((np.arange(SIDE + 1) + 0.5) * SIDE / (SIDE + 1)).astype(int)
    assert np.array_equal(mask, square(2)[rows])
    samples = ReferDataset(index, "train", lambda texts: [[1] for _ in texts], PairTransform(8))
    assert samples.load(1)[0].size == (SIDE, SIDE + 1)
    assert check_dataset(index, 1) == []
    assert "note: object ref_id 2 (ann_id 2, image_id 2): the image 00002.jpg is 20×21" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [b"", b"[]", b"3", b'{"00001.jpg": 3}', b'{"00001.jpg": [1, 2, -3]}'])
def test_sizes_that_were_kept_are_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    """As `refer.prepare` keeps them; but those of a picture that changed since are, and all if the file is damaged."""
    prepare.main(["--dataset", "rrsisd", "--root", str(root)])
    read = rows.stored_size
    opened_files: list[str] = []

    def noted(path: Path) -> Size:
        opened_files.append(path.name)
        return read(path)

    monkeypatch.setattr(rows, "stored_size", noted)
    assert opened(root).resized == opened_files == []
    save_image(root, 2, (SIDE, SIDE + 1))
    assert len(opened(root).resized) == 1 and opened_files == [name(2)]
    (root / "images/rrsisd/sizes.json").write_bytes(damage)
    assert len(opened(root).resized) == 1 and len(opened_files) == 6
    (root / IMAGES / name(2)).unlink()
    assert not opened(root).resized


def test_other_data_sets_refuse_a_mask_of_another_size(root: Path) -> None:
    (root / "rrsisd").rename(root / "refclef")
    (root / IMAGES).rename(root / "images/saiapr_tc-12")
    save_image(root, 2, (SIDE, SIDE + 1))
    (root / IMAGES / name(2)).rename(root / "images/saiapr_tc-12" / name(2))
    index = open_data_set(root, "refclef", "unc")
    samples = ReferDataset(index, "train", lambda texts: [[1] for _ in texts], PairTransform(8))
    with naming(name(2), "20×21", "20×20"):
        samples.load(1)


def test_a_cache_notices_an_image_of_another_size(root: Path) -> None:
    open_cache(root / "a.h5", opened(root), 8, workers=1)
    save_image(root, 2, (SIDE, SIDE + 1))
    with naming("a.h5"):
        open_cache(root / "a.h5", opened(root), 8, workers=1)


def test_missing_images_are_found(root: Path) -> None:
    """As people have it: 63 images of 17,402 are not there, and one has another size than its mask."""
    refs, instances = records()
    for number in range(6, 71):
        refs.append(refs[0] | {"ref_id": number, "ann_id": number, "image_id": number})
        refs[-1]["sentences"] = [refs[0]["sentences"][0] | {"sent_id": number}]
        instances["images"].append(instances["images"][0] | {"id": number, "file_name": name(number)})
        instances["annotations"].append(instances["annotations"][0] | {"id": number, "image_id": number})
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "rrsisd/instances.json").write_text(json.dumps(instances))
    for number in (6, 7):
        save_image(root, number)
    found = check_dataset(opened(root), 1)
    assert "train has 68 objects" in found[0]
    missing = [line for line in found if line.endswith("is missing")]
    assert len(missing) == 63 and all(any(name(number) in line for line in missing) for number in range(8, 71))
    assert len(found) == 64


def test_duplicates_are_found(root: Path) -> None:
    refs, _ = records()
    refs[1]["image_id"] = refs[1]["ann_id"] = 1
    refs[1]["sentences"][0]["raw"] = refs[0]["sentences"][0]["raw"]
    refs[3]["image_id"] = refs[3]["ann_id"] = 5
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    twice, shared = check_dataset(opened(root), 1)
    assert "ref_id 2" in twice and "ref_id 1" in twice and "'The ship 1.'" in twice
    assert shared.endswith("00005.jpg is in val and in test")


@pytest.mark.parametrize("side", [1, 2])
def test_duplicates_with_other_ids_are_found(root: Path, side: int) -> None:
    """An object of the same mask is the same; one of another mask may have the same sentence."""
    refs, instances = records()
    refs[1] |= {"image_id": 1, "sentences": [refs[0]["sentences"][0] | {"sent_id": 2}]}
    instances["annotations"][1] |= {"image_id": 1, "segmentation": [encode_mask(square(side))]}
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (root / "rrsisd/instances.json").write_text(json.dumps(instances))
    found = [line for line in check_dataset(opened(root), 1) if "repeats" in line]
    assert len(found) == (side == 1)


def test_invalid_masks_are_named(root: Path) -> None:
    save_image(root, 2, (SIDE, SIDE + 1))
    file = root / "rrsisd/instances.json"
    instances = json.loads(file.read_text())
    instances["annotations"][1]["segmentation"] = [{"size": [SIDE, SIDE], "counts": "!!"}]
    file.write_text(json.dumps(instances))
    (problem,) = check_dataset(opened(root), 1)
    assert "00002.jpg" in problem and "ref_id 2" in problem


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


def test_a_pickle_of_code_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps([Code()]))
    with naming("builtins.print"):
        opened(root)
    assert "it ran" not in capsys.readouterr().out


# ---------------------------------------------------------------- as other groups pass it on


def lines_of(numbers: range) -> list[dict[str, Any]]:
    return [
        {"file_name": name(n), "sent": f"the ship {n}", "segmentation": [encode_mask(square(n))], "category": "ship"}
        for n in numbers
    ]


@pytest.fixture
def passed(tmp_path: Path) -> Path:
    """The data set with one file for each split instead of its owners' files."""
    for split, numbers in (("train", range(1, 4)), ("val", range(4, 5)), ("test", range(5, 6))):
        write_lines(tmp_path / "rrsisd", split, lines_of(numbers))
    for number in range(1, 6):
        save_image(tmp_path, number)
    return tmp_path


def write_lines(folder: Path, split: str, lines: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"rrsisd_{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_files_of_other_groups_are_read(passed: Path) -> None:
    """Run lengths as they are, or in a list; a data set's folder or the root."""
    lines = lines_of(range(4, 5))
    lines[0] |= {"segmentation": lines[0]["segmentation"][0], "category": ""}
    (passed / "rrsisd/rrsisd_val.jsonl").unlink()
    write_lines(passed / "rrsisd", "val", lines)
    (passed / "rrsisd/rrsisd_test.jsonl").rename(passed / "rrsisd_test.jsonl")
    index = opened(passed)
    assert [len(index.getRefIds(split=split)) for split in index.splits] == [3, 1, 1]
    assert all(np.array_equal(index.getMask(ref)["mask"], square(number)) for number, ref in index.Refs.items())
    assert index.Cats == {1: "ship", 2: "object"}


def test_the_owners_files_come_first(root: Path) -> None:
    write_lines(root / "rrsisd", "val", [])
    assert opened(root).refs_file.name == "refs(unc).p"


def test_their_masks_are_resized_as_well(passed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(passed, 2, (SIDE, SIDE + 1))
    index = opened(passed)
    assert index.getMask(index.Refs[2])["mask"].shape == (SIDE + 1, SIDE)
    assert "rrsisd: 1 mask" in capsys.readouterr().out


HOSTILE: dict[str, tuple[Any, str]] = {
    "no object": ([], "list"),
    "no name": ({"file_name": None}, '"file_name"'),
    "no sentence": ({"sent": " "}, '"sent"'),
    "no mask": ({"segmentation": None}, '"segmentation"'),
    "an empty mask": ({"segmentation": []}, "no mask"),
    "an odd category": ({"category": 3}, '"category"'),
    "outside": ({"file_name": "../1.jpg"}, "'../1.jpg'"),
    "an unknown image": ({"file_name": "77.jpg"}, "77.jpg"),
    "damaged runs": ({"segmentation": {"size": [SIDE, SIDE], "counts": "zzz"}}, "no mask"),
    "a mask of nothing": ({"segmentation": {"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}}, "covers nothing"),
    "an odd size": ({"segmentation": {"size": [0, -1], "counts": "0"}}, "no mask"),
    "a huge size": ({"segmentation": {"size": [10**9, 10**9], "counts": "0"}}, "no mask"),
}


@pytest.mark.parametrize(("change", "named"), HOSTILE.values(), ids=HOSTILE)
def test_faults_are_named_by_file_and_line(passed: Path, change: Any, named: str) -> None:
    good = lines_of(range(4, 6))
    write_lines(passed / "rrsisd", "val", [good[0], good[1] | change if change else change])
    with pytest.raises(UserError) as caught:
        opened(passed)
    assert "rrsisd_val.jsonl, line 2" in str(caught.value) and named in str(caught.value)


def test_a_line_that_is_no_json_is_named(passed: Path) -> None:
    (passed / "rrsisd/rrsisd_val.jsonl").write_text("{}{\n")
    with naming("line 1"):
        opened(passed)


def test_masks_of_the_others_must_fit(tmp_path: Path) -> None:
    """Only RRSIS-D has images of another size than their masks."""
    folder = tmp_path / "RefSegRS"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE + 1)).save(folder / "images/1.tif")
    line = {"file_name": "1.tif", "sent": "road", "segmentation": encode_mask(square(1))}
    (folder / "refsegrs_train.jsonl").write_text(json.dumps(line))
    with naming("refsegrs_train.jsonl", "line 1"):
        open_data_set(tmp_path, "refsegrs", "phrases")
