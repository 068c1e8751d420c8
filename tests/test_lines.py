"""RefSegRS and RISBench in their owners' layouts: a folder of images, one of masks, and lines of text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset_refer_bert import ReferDataset
from data.transforms import PairTransform
from errors import UserError
from refer import lines
from refer.check import check_dataset
from refer.datasets import DATA_SETS, Lines
from refer.lines import convert_masks
from refer.open import open_data_set
from refer.rows import Size
from tests.helpers import naming
from tests.refer_fixture import runs

SIDE = 16
PHRASES = {"train": ["road", "the vehicle in the parking area"], "val": ["bikeway"], "test": ["a  building , red"]}
ON = {"refsegrs": 51, "risbench": 1}  # the smallest grey value of an object


def write_set(root: Path, dataset: str) -> Path:
    """Write a small data set as its owners do; return the folder of its texts. Object n is an n×n square."""
    folder = root / {"refsegrs": "RefSegRS", "risbench": "RISBench_dataset"}[dataset]
    suffix, images, masks = {"refsegrs": ("tif", "images", "masks"), "risbench": ("png", "img_rgb", "mask")}[dataset]
    for name in (images, masks):
        (folder / name).mkdir(parents=True)
    number = 0
    for split, phrases in PHRASES.items():
        names = []
        for _ in phrases:
            number += 1
            pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE + 1, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / images / f"{number}.{suffix}")
            save_mask(folder / masks / f"{number}.{suffix}", square(number), ON[dataset])
            names.append(f"{number}" if dataset == "refsegrs" else f"{number}.png")
        text = "".join(f"{name} {phrase}\n" for name, phrase in zip(names, phrases, strict=True))
        (folder / f"output_phrase_{split}.txt").write_text(text)
    return folder


def square(side: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE + 1), np.uint8)
    mask[2 : 2 + side, 3 : 3 + side] = 1
    return mask


def save_mask(path: Path, mask: np.ndarray, value: int) -> None:
    """value: of the object; the ground has one less."""
    Image.fromarray(np.where(mask == 1, value, value - 1).astype(np.uint8)).save(path)


@pytest.mark.parametrize("dataset", ["refsegrs", "risbench"])
def test_a_data_set_is_read_as_its_owners_lay_it_out(tmp_path: Path, dataset: str) -> None:
    """Pixels are object if their grey value is above the data set's threshold."""
    write_set(tmp_path, dataset)
    index = open_data_set(tmp_path, dataset, "phrases")
    assert not index.as_seen
    assert {split: len(index.getRefIds(split=split)) for split in index.splits} == {"train": 2, "val": 1, "test": 1}
    for number, ref in index.Refs.items():
        assert np.array_equal(index.getMask(ref)["mask"], square(number))
        assert index.getRefBox(number) == [3, 2, number, number]
    assert index.Refs[4]["sentences"][0]["raw"] == "a  building , red"
    assert index.Refs[4]["sentences"][0]["tokens"] == ["a", "building", ",", "red"]


@pytest.mark.parametrize("dataset", ["refsegrs", "risbench"])
def test_samples_and_their_fingerprint(tmp_path: Path, dataset: str) -> None:
    write_set(tmp_path / "a", dataset)
    write_set(tmp_path / "b", dataset)
    save_mask(next((tmp_path / "b").glob("*/mask*/2.*")), square(5), ON[dataset])
    one, other = (samples(tmp_path / name, dataset) for name in "ab")
    image, mask = one.load(1)
    assert image.size == (SIDE + 1, SIDE) and mask.sum() == 4
    assert one[1].image.shape == torch.Size([3, 8, 8])
    assert one.fingerprint() != other.fingerprint()
    assert one.fingerprint() == samples(tmp_path / "a", dataset).fingerprint()


def samples(root: Path, dataset: str) -> ReferDataset:
    def tokenizer(texts: list[str]) -> list[list[int]]:
        return [[1, *map(len, text.split()), 2] for text in texts]

    return ReferDataset(open_data_set(root, dataset, "phrases"), "train", tokenizer, PairTransform(8))


def test_an_image_with_two_phrases_has_one_mask(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "refsegrs")
    (folder / "output_phrase_val.txt").write_text("3 bikeway\n\n3 the path of bikes\r\n")
    index = open_data_set(tmp_path, "refsegrs", "phrases")
    first, second = index.loadRefs(index.getRefIds(split="val"))
    assert first["ann_id"] == second["ann_id"] and first["ref_id"] != second["ref_id"]
    assert second["sentences"][0]["raw"] == "the path of bikes"


def test_a_missing_split_is_empty(tmp_path: Path) -> None:
    """People who only test need only the files of the test."""
    folder = write_set(tmp_path, "refsegrs")
    (folder / "output_phrase_train.txt").unlink()
    index = open_data_set(tmp_path, "refsegrs", "phrases")
    assert [len(index.getRefIds(split=split)) for split in index.splits] == [0, 1, 1]
    with naming("'testA'"):
        index.getRefIds(split="testA")


# ---------------------------------------------------------------- hostile variants


def no_phrase(folder: Path) -> None:
    (folder / "output_phrase_val.txt").write_text("3 bikeway\n4\n")


def only_spaces(folder: Path) -> None:
    (folder / "output_phrase_val.txt").write_text("3 bikeway\n4   \t\n")


def unknown_name(folder: Path) -> None:
    (folder / "output_phrase_val.txt").write_text("3 bikeway\n77 road\n")


def outside(folder: Path) -> None:
    (folder / "output_phrase_val.txt").write_text("3 bikeway\n../images/3 road\n")


def no_text(folder: Path) -> None:
    (folder / "output_phrase_val.txt").write_bytes(b"3 bikeway\n4 \xff\xfe\n")


def no_mask(folder: Path) -> None:
    (folder / "masks/3.tif").unlink()


def no_image(folder: Path) -> None:
    (folder / "images/3.tif").unlink()


def broken_mask(folder: Path) -> None:
    (folder / "masks/3.tif").write_bytes(b"II*\0 no mask")


def broken_image(folder: Path) -> None:
    (folder / "images/3.tif").write_bytes(b"<html>")


def other_size(folder: Path) -> None:
    save_mask(folder / "masks/3.tif", np.ones((SIDE, SIDE), np.uint8), 255)


def too_dark(folder: Path) -> None:
    save_mask(folder / "masks/3.tif", square(3), 50)


def postscript(folder: Path) -> None:
    (folder / "masks/3.tif").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")


HOSTILE: dict[Callable[[Path], None], tuple[int, str]] = {
    no_phrase: (2, "'4'"),
    only_spaces: (2, "'4'"),
    unknown_name: (2, "images/77.tif"),
    outside: (2, "'../images/3.tif'"),
    no_text: (2, "UTF-8"),
    no_mask: (1, "masks/3.tif"),
    no_image: (1, "images/3.tif"),
    broken_mask: (1, "masks/3.tif"),
    broken_image: (1, "images/3.tif"),
    other_size: (1, "16×16"),
    too_dark: (1, "above 50"),
    postscript: (1, "masks/3.tif"),
}


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_faults_are_named_by_file_and_line(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(write_set(tmp_path, "refsegrs"))
    line, named = HOSTILE[change]
    with pytest.raises(UserError) as caught:
        open_data_set(tmp_path, "refsegrs", "phrases")
    assert f"output_phrase_val.txt, line {line}" in str(caught.value) and named in str(caught.value)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    folder = write_set(tmp_path, "risbench")
    (folder / "mask/1.png").unlink()
    (folder / "img_rgb/2.png").unlink()
    (folder / "output_phrase_test.txt").write_text("")
    with naming("mask/1.png", "img_rgb/2.png", "output_phrase_test.txt"):
        open_data_set(tmp_path, "risbench", "phrases")


def test_a_missing_data_set_is_reported_with_its_layout(tmp_path: Path) -> None:
    with naming("output_phrase_train.txt", "RISBench_dataset", "mask"):
        open_data_set(tmp_path, "risbench", "phrases")


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Any bytes in a line or a mask end in an index or in a message."""
    folder, random = write_set(tmp_path, "refsegrs"), np.random.default_rng(0)
    for name in ("output_phrase_val.txt", "masks/3.tif", "masks.json"):
        convert_masks(tmp_path, "refsegrs", "phrases")
        sound = (folder / name).read_bytes()
        for _ in range(30):
            content = bytearray(sound)
            content[random.integers(len(content))] = random.integers(256)
            (folder / name).write_bytes(content[: random.integers(len(content)) if random.random() < 0.3 else None])
            try:
                open_data_set(tmp_path, "refsegrs", "phrases")
            except UserError as error:
                assert str(folder) in str(error)
        (folder / name).write_bytes(sound)


# ---------------------------------------------------------------- converted masks


def test_converted_masks_are_used_until_a_picture_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_set(tmp_path, "refsegrs")
    before = open_data_set(tmp_path, "refsegrs", "phrases").data
    convert_masks(tmp_path, "refsegrs", "phrases")
    decoded: list[str] = []
    decode = lines._decode

    def counted(image: Path, picture: Path, layout: Lines) -> tuple[Size, str]:
        decoded.append(picture.name)
        return decode(image, picture, layout)

    monkeypatch.setattr(lines, "_decode", counted)
    assert open_data_set(tmp_path, "refsegrs", "phrases").data == before
    assert decoded == []
    save_mask(folder / "masks/2.tif", square(5), 51)
    os.utime(folder / "masks/2.tif", ns=(1, 1))
    changed = open_data_set(tmp_path, "refsegrs", "phrases")
    assert decoded == ["2.tif"] and changed.getMask(changed.Refs[2])["area"] == 25


@pytest.mark.parametrize("content", ["", "[]", "{", '{"version": 1, "above": 50, "masks": []}', "9" * 5000])
def test_a_damaged_copy_is_ignored(tmp_path: Path, content: str) -> None:
    folder = write_set(tmp_path, "refsegrs")
    before = open_data_set(tmp_path, "refsegrs", "phrases").data
    (folder / "masks.json").write_text(content)
    assert open_data_set(tmp_path, "refsegrs", "phrases").data == before


@pytest.mark.parametrize("counts", ["", "0", 7, None, [1], "\ud800"])
def test_a_copy_of_wrong_masks_is_ignored(tmp_path: Path, counts: object) -> None:
    folder = write_set(tmp_path, "refsegrs")
    before = open_data_set(tmp_path, "refsegrs", "phrases").data
    convert_masks(tmp_path, "refsegrs", "phrases")
    content = json.loads((folder / "masks.json").read_text())
    content["masks"]["2.tif"][2] = counts
    (folder / "masks.json").write_text(json.dumps(content))
    assert open_data_set(tmp_path, "refsegrs", "phrases").data == before


@pytest.mark.parametrize("change", [lambda counts: counts + "`", lambda counts: runs(square(2))])
def test_a_copy_in_another_code_reads_the_same(tmp_path: Path, change: Callable[[str], object]) -> None:
    """Run lengths as numbers, and COCO's string with half a number behind it, which COCO's own code would read."""
    folder = write_set(tmp_path, "refsegrs")
    before = open_data_set(tmp_path, "refsegrs", "phrases").data
    convert_masks(tmp_path, "refsegrs", "phrases")
    content = json.loads((folder / "masks.json").read_text())
    content["masks"]["2.tif"][2] = change(content["masks"]["2.tif"][2])
    (folder / "masks.json").write_text(json.dumps(content))
    assert open_data_set(tmp_path, "refsegrs", "phrases").data == before


def test_the_number_of_all_sentences_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, "risbench")
    index = open_data_set(tmp_path, "risbench", "phrases")
    (problem,) = check_dataset(index, 1)
    assert "4 expressions, published are 52,472" in problem
    monkeypatch.setitem(DATA_SETS, "risbench", DATA_SETS["risbench"]._replace(total=4))
    assert check_dataset(index, 1) == []
