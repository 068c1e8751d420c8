"""RefCOCO-M and aRefCOCO, which are for evaluation only and need RefCOCO's files."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.loaders import open_index
from errors import UserError
from lib.run_lengths import encode_mask
from refer import refcocom
from refer.check import check_dataset
from refer.open import open_data_set
from tests.helpers import naming
from tests.refer_fixture import HEIGHT, IMAGES, WIDTH, box_mask, tiny_instances, tiny_refs, write_images, write_refer
from train import parse_args

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


# ---------------------------------------------------------------- RefCOCO-M


def picture(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content := BytesIO(), "JPEG")
    return content.getvalue()


def sample(number: int, sentences: list[str], mask: np.ndarray) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 2,
        "category": "car",
        "supercategory": "vehicle",
        "label": "car",
        "sentences": sentences,
        "bbox": [5.0, 5.0, 10.0, 8.0],
        "mask": encode_mask(mask),
    }


def rows() -> list[dict[str, Any]]:
    """One object of RefCOCO's val, and one of another image, with masks that are not RefCOCO's."""
    first, second = sample(7, ["The man"], box_mask(6, 6, 8, 7)), sample(9, ["a bus", "bus"], box_mask(1, 1, 3, 3))
    return [
        {"image": {"bytes": picture(2), "path": None}, "image_id": 2, "file_name": "2.png", "samples": [first]},
        {"image": {"bytes": picture(4), "path": "4"}, "image_id": 4, "file_name": "4.png", "samples": [second]},
    ]


def write_parquet(root: Path, *files: list[dict[str, Any]]) -> None:
    folder = root / "refcocom" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(files):
        parquet.write_table(pa.Table.from_pylist(content), folder / f"validation-{number:05}.parquet")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """RefCOCO with its three images, as the others need it."""
    write_images(write_refer(tmp_path))
    return tmp_path


def test_parquet_is_converted_once_and_read_without_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = rows()
    write_parquet(root, [one], [other])
    before = (root / IMAGES / "2.png").read_bytes()
    refcocom.convert(root)
    assert (root / IMAGES / "2.png").read_bytes() == before, "images that are there stay"
    assert (root / IMAGES / "4.png").read_bytes() == picture(4)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    index = open_data_set(root, "refcocom", "unc")
    assert [ref["split"] for ref in index.data["refs"]] == ["val", "val"]
    assert [sentence["raw"] for sentence in index.Sents.values()] == ["The man", "a bus", "bus"]
    assert np.array_equal(index.getMask(index.Refs[1])["mask"], box_mask(6, 6, 8, 7))
    (counts,) = check_dataset(index, 1)
    assert "published are 2,080 objects and 5,598 expressions and 1,190 images" in counts


def test_old_masks_of_the_same_objects(root: Path) -> None:
    """The same sentences and ids, RefCOCO's masks."""
    write_parquet(root, rows()[:1])
    refcocom.convert(root)
    new, old = (open_data_set(root, "refcocom", way) for way in ("unc", "old"))
    assert new.Sents == old.Sents and new.Refs.keys() == old.Refs.keys()
    assert np.array_equal(old.getMask(old.Refs[1])["mask"], box_mask(5, 5, 10, 8))


def test_of_two_objects_of_the_same_sentence_the_box_decides(root: Path) -> None:
    refs, instances = tiny_refs(), tiny_instances()
    refs[3] |= {"split": "val"}
    refs[3]["sentences"][0]["raw"] = "the  MAN"
    instances["annotations"][3]["bbox"] = [20, 20, 5, 5]
    write_refer(root, refs, instances)
    write_parquet(root, rows()[:1])
    refcocom.convert(root)
    assert open_data_set(root, "refcocom", "old").Refs[1]["ann_id"] == 103
    instances["annotations"][2]["bbox"] = ["a", None]
    write_refer(root, refs, instances)
    assert open_data_set(root, "refcocom", "old").Refs[1]["ann_id"] in (103, 104)


def test_an_object_that_refcoco_lacks_is_named(root: Path) -> None:
    write_parquet(root, rows())
    refcocom.convert(root)
    with naming("ref_id 2", "refcoco/refs(unc).p"):
        open_data_set(root, "refcocom", "old")


def test_training_ignores_its_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(root, rows()[:1])
    refcocom.convert(root)
    index = open_index(parse_args(f"--dataset refcoco,refcocom --refer_data_root {root}".split()))
    assert {ref["image_id"] for ref in index.data["refs"] if ref["split"] == "train"} == {1}
    assert np.array_equal(index.getMask(index.Refs[10_000_001])["mask"], box_mask(6, 6, 8, 7))


def test_missing_conversions_are_reported_with_the_command(root: Path) -> None:
    with naming("refer.prepare", "--dataset refcocom"):
        open_data_set(root, "refcocom", "unc")


def test_without_pyarrow_the_error_names_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(root, rows())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with naming("pyarrow", "validation-00000.parquet"):
        refcocom.convert(root)


def changed(place: str, value: Any) -> list[dict[str, Any]]:
    content = rows()
    if place in content[1]:
        content[1][place] = value
    else:
        content[1]["samples"][0][place] = value
    return content


HOSTILE: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no picture": (changed("image", {"bytes": b"<html>", "path": ""}), "image_id 4"),
    "no bytes": (changed("image", None), "image_id 4"),
    "outside": (changed("file_name", "../4.png"), "'../4.png'"),
    "no name": (changed("file_name", None), "image_id 4"),
    "no id": (changed("image_id", None), "image_id None"),
    "no samples": (changed("samples", None), "image_id 4"),
    "no sentence": (changed("sentences", []), "sample id 9"),
    "an empty sentence": (changed("sentences", ["bus", " "]), "sample id 9"),
    "no mask": (changed("mask", None), "sample id 9"),
    "another size": (changed("mask", encode_mask(np.ones((3, 3), np.uint8))), "sample id 9"),
    "damaged runs": (changed("mask", {"size": [HEIGHT, WIDTH], "counts": "zzz"}), "sample id 9"),
    "an empty mask": (changed("mask", encode_mask(np.zeros((HEIGHT, WIDTH), np.uint8))), "sample id 9"),
    "a column that is absent": ([{"image_id": 4, "file_name": "4.png"}], "image, samples"),
}


@pytest.mark.parametrize(("content", "named"), HOSTILE.values(), ids=HOSTILE)
def test_faults_are_named_by_file_and_id(root: Path, content: list[dict[str, Any]], named: str) -> None:
    """And nothing is written."""
    write_parquet(root, content)
    with pytest.raises(UserError) as caught:
        refcocom.convert(root)
    assert "validation-00000.parquet" in str(caught.value) and named in str(caught.value)
    assert not (root / "refcocom/instances.json").exists()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"<html>"])
def test_damaged_parquet_is_named(root: Path, content: bytes) -> None:
    write_parquet(root, rows())
    (root / "refcocom/data/validation-00000.parquet").write_bytes(content)
    with naming("validation-00000.parquet"):
        refcocom.convert(root)


# ---------------------------------------------------------------- aRefCOCO


def records() -> list[dict[str, Any]]:
    """One object of RefCOCO's train, one of its testA, one of G-Ref; and one of another split."""
    rows = [("refcoco", 1, "test"), ("refcoco", 4, "test"), ("refcocog", 2, "test"), ("refcoco", 3, "train")]
    return [
        {
            "split": split,
            "entity_id": f"entity {number}",
            "ref_id": ref_id,
            "original_dataset": dataset,
            "descriptions": [f"what is {number}", "the other one"][: 1 + number % 2],
        }
        for number, (dataset, ref_id, split) in enumerate(rows)
    ]


def write_arefcoco(root: Path, content: Any) -> None:
    (root / "arefcoco").mkdir(exist_ok=True)
    (root / "arefcoco/arefcoco.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def both(root: Path) -> Path:
    """RefCOCO and G-Ref on the same images."""
    write_refer(root, dataset="refcocog", split_by="umd")
    write_arefcoco(root, {"annotations": records()})
    return root


def test_masks_come_from_the_old_files(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, old = (open_data_set(both, *which) for which in (("arefcoco", "published"), ("refcoco", "unc")))
    assert len(index.getRefIds(split="test")) == 3 and index.splits == ("test",)
    said = [sentence["raw"] for sentence in index.Sents.values()]
    assert said == ["what is 0", "what is 1", "the other one", "what is 2"]
    for number, original in ((1, 1), (2, 4), (3, 2)):
        mask = old.getMask(old.Refs[original])["mask"]
        assert np.array_equal(index.getMask(index.Refs[number])["mask"], mask)
    notes = capsys.readouterr().out
    assert "1 annotations of split train are not read" in notes
    assert "1 of the 2 images of arefcoco are in train of refcoco (unc)" in notes
    assert "--dataset refcoco,arefcoco" in notes


def test_its_images_are_left_out_of_training(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse_args(f"--dataset refcoco,arefcoco --refer_data_root {both}".split())
    index = open_index(args)
    assert "left out" in capsys.readouterr().out
    assert not index.getRefIds(split="train"), "the only image of train is one of aRefCOCO's"
    assert len(index.getRefIds(split="test")) == 6


BAD: dict[str, tuple[Any, str]] = {
    "no json": ("{", "arefcoco.json"),
    "a list": ([], "arefcoco.json"),
    "no annotations": ({"annotations": {}}, "'annotations'"),
    "none": ({"annotations": []}, "'annotations'"),
    "no record": ({"annotations": [*records(), 3]}, "annotations number 4"),
    "no split": ({"annotations": [records()[0] | {"split": None}]}, "'split'"),
    "no data set": ({"annotations": [records()[0] | {"original_dataset": 1}]}, "'original_dataset'"),
    "an odd id": ({"annotations": [records()[0] | {"ref_id": True}]}, "'ref_id'"),
    "an unknown id": (
        {"annotations": [records()[0], records()[1] | {"ref_id": 77}]},
        "number 1: ref_id 77",
    ),
    "no description": ({"annotations": [records()[0] | {"descriptions": []}]}, "'descriptions'"),
    "an empty one": ({"annotations": [records()[0] | {"descriptions": ["a", ""]}]}, "'descriptions'"),
}


@pytest.mark.parametrize(("content", "named"), BAD.values(), ids=BAD)
def test_faults_are_named(both: Path, content: Any, named: str) -> None:
    write_arefcoco(both, content)
    with pytest.raises(UserError) as caught:
        open_data_set(both, "arefcoco", "published")
    assert "arefcoco.json" in str(caught.value) and named in str(caught.value)


def test_the_old_files_are_required(both: Path) -> None:
    (both / "refcocog/instances.json").unlink()
    with naming("refcocog/instances.json"):
        open_data_set(both, "arefcoco", "published")


def test_random_damage_ends_in_an_index_or_a_message(both: Path) -> None:
    """In either file; errors of pyarrow are also reported."""
    write_parquet(both, rows())
    random = np.random.default_rng(0)
    for name in ("arefcoco/arefcoco.json", "refcocom/data/validation-00000.parquet"):
        sound = (both / name).read_bytes()
        for _ in range(40):
            content = bytearray(sound)
            content[random.integers(len(content))] = random.integers(256)
            (both / name).write_bytes(content[: random.integers(len(content)) if random.random() < 0.2 else None])
            try:
                refcocom.convert(both)
                open_data_set(both, "arefcoco", "published")
            except UserError as error:
                assert str(both) in str(error)
        (both / name).write_bytes(sound)
