"""The REFER index: ids, records, masks, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
from array import array
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from errors import UserError
from refer.datasets import DATA_SETS
from refer.files import read_refs
from refer.masks import decode_parts, encode_parts
from refer.refer import REFER
from refer.splits import in_split
from tests.helpers import naming
from tests.refer_fixture import (
    HEIGHT,
    SIZE,
    WIDTH,
    Unicode,
    box,
    box_mask,
    compressed,
    python2_pickle,
    tiny_instances,
    tiny_refs,
    write_refer,
)


@pytest.fixture(scope="module")
def refer(tmp_path_factory: pytest.TempPathFactory) -> REFER:
    return REFER(write_refer(tmp_path_factory.mktemp("data")), "refcoco", "unc")


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"image_ids": 2}, [3, 4]),
        ({"image_ids": [3, 1]}, [5, 6, 1, 2]),
        ({"image_ids": [77]}, []),
        ({"cat_ids": [6]}, [2, 5, 6]),
        ({"ref_ids": [4, 2]}, [2, 4]),
        ({"image_ids": [1], "cat_ids": 5, "split": "train"}, [1]),
        ({"split": "train"}, [1, 2]),
        ({"split": "val"}, [3]),
        ({"split": "testA"}, [4, 6]),
        ({"split": "testB"}, [5, 6]),
        ({"split": "test"}, [4, 5, 6]),
    ],
)
def test_ref_ids_pass_every_filter(refer: REFER, filters: dict, expected: list[int]) -> None:
    assert refer.getRefIds(**filters) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [101, 102, 103, 104, 105, 106, 200]),
        ({"image_ids": [3]}, [105, 106, 200]),
        ({"image_ids": 3, "cat_ids": 6}, [105, 106]),
        ({"ref_ids": [6, 1]}, [101, 106]),
        ({"image_ids": [3], "ref_ids": [6, 1]}, [106]),
    ],
)
def test_ann_ids_pass_every_filter(refer: REFER, filters: dict, expected: list[int]) -> None:
    assert refer.getAnnIds(**filters) == expected


def test_image_and_category_ids(refer: REFER) -> None:
    assert refer.getImgIds() == [1, 2, 3]
    assert refer.getImgIds([5, 6, 1]) == [3, 1]
    assert refer.getImgIds(ref_ids=4) == [2]
    assert refer.getCatIds() == [5, 6]


def test_splits_follow_the_rule_of_the_field() -> None:
    marks = ("train", "val", "test", "testA", "testB", "testC", "testAB", "testBC", "trainA", "valB")
    members = {split: [mark for mark in marks if in_split(mark, split)] for split in marks[:6]}
    assert members == {
        "train": ["train"],
        "val": ["val"],
        "test": ["test", "testA", "testB", "testC", "testAB", "testBC"],
        "testA": ["testA", "testAB"],
        "testB": ["testB", "testAB", "testBC"],
        "testC": ["testC", "testBC"],
    }


@pytest.mark.parametrize("split", ["testC", "Val", "testA ", "all"])
def test_unknown_split_lists_what_exists(refer: REFER, split: str) -> None:
    with pytest.raises(UserError, match=rf"'{split}'.*train, val, testA, testB"):
        refer.getRefIds(split=split)


def test_a_data_set_without_test_split_has_no_test(tmp_path: Path) -> None:
    refer = REFER(write_refer(tmp_path, dataset="refcocog", split_by="google"), "refcocog", "google")
    with naming("refcocog (google)", "'test'", "train, val"):
        refer.getRefIds(split="test")


@pytest.mark.parametrize(("dataset", "split_by"), [("refcoco", "umd"), ("refcoco+", "google"), ("refclef", "umd")])
def test_unknown_data_set_lists_what_exists(tmp_path: Path, dataset: str, split_by: str) -> None:
    with pytest.raises(UserError, match=split_by) as caught:
        REFER(tmp_path, dataset, split_by)
    for known, found in DATA_SETS.items():
        for way, splits in found.splits.items():
            assert f"{known} ({way}): {', '.join(splits)}" in str(caught.value)


# ---------------------------------------------------------------- records


def test_records_by_one_id_or_many(refer: REFER) -> None:
    assert [ref["ref_id"] for ref in refer.loadRefs([4, 1])] == [4, 1]
    assert refer.loadRefs(4) == [refer.Refs[4]]
    assert refer.loadRefs() == []
    assert refer.loadAnns(200)[0]["bbox"] == [5, 5, 10, 8]
    assert [image["file_name"] for image in refer.loadImgs([2, 3])] == ["2.png", "3.png"]
    assert refer.loadCats([6, 5]) == ["thing", "car"]
    assert refer.getRefBox(1) == [5, 5, 10, 8]


@pytest.mark.parametrize("call", ["loadRefs", "loadAnns", "loadImgs", "loadCats", "getRefBox", "getImgIds"])
def test_unknown_id_is_named(refer: REFER, call: str) -> None:
    with pytest.raises(UserError, match="999"):
        getattr(refer, call)(999)


def test_maps_link_objects_sentences_images_and_categories(refer: REFER) -> None:
    first, last = refer.Refs[1], refer.Refs[6]
    assert list(refer.Refs) == [1, 2, 3, 4, 5, 6]
    assert refer.refToAnn[6] is refer.Anns[106]
    assert refer.annToRef[106] is last
    assert refer.imgToRefs[1] == [first, refer.Refs[2]]
    assert [ann["id"] for ann in refer.imgToAnns[3]] == [105, 106, 200]
    assert refer.catToRefs[6] == [refer.Refs[2], refer.Refs[5], last]
    assert refer.Cats == {5: "car", 6: "thing"}
    assert refer.Imgs[2]["height"] == HEIGHT
    assert list(refer.Sents) == list(range(9))
    assert refer.sentToRef[2] is first
    assert refer.Sents[8]["raw"] == "right car"
    assert refer.sentToTokens[8] == ["right", "car"]
    assert {"dataset", "refs", "images", "annotations", "categories"} == set(refer.data)


def test_defaults_and_paths(tmp_path: Path) -> None:
    refer = REFER(f"{write_refer(tmp_path)}/")
    assert Path(refer.IMAGE_DIR) == tmp_path / "images/mscoco/images/train2014"


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("ref_id", [1, 3, 4, 5])
def test_every_kind_of_segmentation_gives_the_same_mask(refer: REFER, ref_id: int) -> None:
    answer = refer.getMask(refer.Refs[ref_id])
    mask = answer["mask"]
    assert (mask.dtype, mask.shape) == (np.uint8, (HEIGHT, WIDTH))
    assert np.array_equal(mask, box_mask(5, 5, 10, 8))
    assert answer["area"] == 80
    assert type(answer["area"]) is int


def test_polygons_are_kept_in_little_memory(refer: REFER) -> None:
    """They have the numbers of the file."""
    (polygon,) = refer.Anns[101]["segmentation"]
    assert isinstance(polygon, array)
    assert polygon.tolist() == box(5, 5, 10, 8)


def test_pixels_where_parts_overlap_are_background(refer: REFER) -> None:
    """The published numbers were measured this way."""
    expected = box_mask(0, 0, 10, 10) + box_mask(20, 0, 10, 10)
    answer = refer.getMask(refer.Refs[2])
    assert np.array_equal(answer["mask"], expected)
    assert answer["area"] == 200


def test_pixels_where_parts_overlap_are_object_on_request(refer: REFER, tmp_path: Path) -> None:
    """There alone; fewer than three points still cover nothing."""
    other = REFER(write_refer(tmp_path), overlap="object")
    answer = other.getMask(other.Refs[2])
    assert np.array_equal(answer["mask"], box_mask(0, 0, 30, 10))
    assert answer["area"] == 300
    for ref_id in (1, 3, 4, 5, 6):
        assert np.array_equal(other.getMask(other.Refs[ref_id])["mask"], refer.getMask(refer.Refs[ref_id])["mask"])
    assert (refer.overlap, other.overlap) == ("background", "object")
    with pytest.raises(ValueError, match=r"'union'.*background, object"):
        REFER(tmp_path, overlap="union")


def test_parts_that_do_not_overlap_are_joined(refer: REFER) -> None:
    expected = box_mask(0, 0, 5, 5) + box_mask(20, 20, 5, 5)
    assert np.array_equal(refer.getMask(refer.Refs[6])["mask"], expected)


def test_run_lengths_of_any_mask_are_read_as_coco_writes_them() -> None:
    random = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = (random.random((61, 83)) < density).astype(np.uint8)
        part = coco_mask.encode(np.asfortranarray(mask))
        assert np.array_equal(decode_parts(encode_parts([part], 61, 83)), mask)
        assert encode_parts(part, 61, 83) == [part]


def test_a_part_of_two_points_covers_nothing() -> None:
    parts = encode_parts([[1, 1, 9, 9], box(2, 2, 4, 4)], HEIGHT, WIDTH)
    assert np.array_equal(decode_parts(parts), box_mask(2, 2, 4, 4))


NO_MASKS = {
    "no part": [],
    "two points": [[1, 1, 9, 9]],
    "text": ["mask"],
    "odd": [[1, 1, 5, 1, 5, 5, 7]],
    "words": [["a", "b", "c", "d", "e", "f"]],
    "pairs": [[[1, 1], [5, 1], [5, 5], [4, 4], [3, 3], [2, 2]]],
    "not a number": [[1, 1, float("nan"), 1, 5, 5]],
    "far outside": [[1, 1, 1e9, 1, 5, 5]],
    "beyond a float": [[1, 1, 10**400, 1, 5, 5]],
    "other size": {"size": [HEIGHT, WIDTH + 1], "counts": [HEIGHT * (WIDTH + 1)]},
    "no size": {"counts": [HEIGHT * WIDTH]},
    "no counts": {"size": SIZE},
    "too few runs": {"size": SIZE, "counts": [5, 10]},
    "too many runs": {"size": SIZE, "counts": [5, HEIGHT * WIDTH]},
    "negative runs": {"size": SIZE, "counts": [-5, HEIGHT * WIDTH + 5]},
    "cut string": {"size": SIZE, "counts": compressed(box_mask(5, 5, 10, 8))[:-3]},
    "empty string": {"size": SIZE, "counts": ""},
    "other string": {"size": SIZE, "counts": "ü zzz ~~~"},
}


@pytest.mark.parametrize("segmentation", NO_MASKS.values(), ids=NO_MASKS)
def test_an_object_without_a_mask_is_named(tmp_path: Path, segmentation: object) -> None:
    instances = tiny_instances()
    instances["annotations"][3]["segmentation"] = segmentation
    refer = REFER(write_refer(tmp_path, instances=instances))
    with pytest.raises(UserError, match=r"ref_id 4 \(ann_id 104, .*mask: "):
        refer.getMask(refer.Refs[4])


@pytest.mark.parametrize("size", [0, -3, 2**40])
def test_an_image_of_impossible_size_is_refused(tmp_path: Path, size: int) -> None:
    instances = tiny_instances()
    instances["images"][1]["height"] = size
    refer = REFER(write_refer(tmp_path, instances=instances))
    with pytest.raises(UserError, match="ref_id 4"):
        refer.getMask(refer.Refs[4])


@pytest.mark.parametrize(("key", "value"), [("ann_id", 555), ("image_id", 777)])
def test_an_object_unknown_to_the_instances_is_named(tmp_path: Path, key: str, value: int) -> None:
    refs = tiny_refs()
    refs[4][key] = value
    with pytest.raises(UserError, match=rf"ref_id 5 .*{key} {value} .*instances\.json"):
        REFER(write_refer(tmp_path, refs))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python_2_text_comes_out_as_text(tmp_path: Path, protocol: int) -> None:
    refs = tiny_refs()
    texts = ["plain", 'it\'s the "café"', Unicode("naïve café €"), "long " * 60]
    refs[0]["sentences"] = [
        {"raw": text, "sent": text, "sent_id": number, "tokens": [text]} for number, text in enumerate(texts)
    ]
    path = tmp_path / "refs(unc).p"
    path.write_bytes(python2_pickle(refs, protocol))
    loaded = read_refs(path)
    assert loaded == refs
    assert {type(sentence["raw"]) for sentence in loaded[0]["sentences"]} == {str}
    assert {type(key) for key in loaded[0]} == {str}


def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        root = write_refer(tmp_path, pickle.dumps(tiny_refs(), protocol))
        assert REFER(root).data["refs"] == tiny_refs()


class _Call:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


def hostile_pickles(target: str) -> dict[str, bytes]:
    """Return pickles that make the folder `target` when Python's own unpickler reads them."""
    name = target.encode()
    hidden = tiny_refs()
    hidden[0]["sentences"] = [_Call(target)]
    return {
        "reduce, protocol 0": pickle.dumps(_Call(target), 0),
        "reduce, protocol 2": pickle.dumps(_Call(target), 2),
        "reduce, protocol 4": pickle.dumps(_Call(target), 4),
        "inst": b"(S'" + name + b"'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'" + name + b"'\no.",
        "deep inside": pickle.dumps(hidden, 2),
        "builtins": b'c__builtin__\neval\n(S\'__import__("os").mkdir("' + name + b"\")'\ntR.",
    }


@pytest.mark.parametrize("kind", hostile_pickles(""))
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "made"
    content = hostile_pickles(str(target))[kind]
    with naming("refs(unc).p", "pickle"):
        REFER(write_refer(tmp_path, content))
    assert not target.exists()
    pickle.loads(content)  # the control: read carelessly, it would have run
    assert target.exists()


def _changed(position: int, **fields: object) -> list:
    refs = tiny_refs()
    refs[position].update(fields)
    return refs


DAMAGED_REFS = {
    "empty file": b"",
    "cut off": python2_pickle(tiny_refs())[:-40],
    "no pickle": b"<html>404 Not Found</html>",
    "Latin-1 bytes": python2_pickle(tiny_refs()).replace(b"the man", b"the m\xe4n"),
    "huge string": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fx.",
    "no list": {"refs": 1},
    "empty list": [],
    "list of text": ["a", "b"],
    "without split": [{key: value for key, value in tiny_refs()[0].items() if key != "split"}],
    "id as text": _changed(0, ref_id="1"),
    "sentences as text": _changed(1, sentences="the car"),
    "sentence without raw": _changed(1, sentences=[{"sent": "a", "sent_id": 1, "tokens": []}]),
}


@pytest.mark.parametrize("refs", DAMAGED_REFS.values(), ids=DAMAGED_REFS)
def test_damaged_refs_are_named(tmp_path: Path, refs: object) -> None:
    with pytest.raises(UserError, match=r"refs\(unc\)\.p .*docs/data\.md"):
        REFER(write_refer(tmp_path, refs))


def test_no_cut_of_a_pickle_gets_through(tmp_path: Path) -> None:
    content = python2_pickle(tiny_refs())
    path = tmp_path / "refs(unc).p"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match=r"refs\(unc\)\.p"):
            read_refs(path)


DAMAGED_INSTANCES = {
    "empty file": "",
    "cut off": '{"images": [{"id": 1, ',
    "nested without end": "[" * 100_000,
    "no dict": "[]",
    "no images": {**tiny_instances(), "images": None},
    "no annotations": {key: value for key, value in tiny_instances().items() if key != "annotations"},
    "image without height": {**tiny_instances(), "images": [{"id": 1, "file_name": "a", "width": 3}]},
    "segmentation missing": {**tiny_instances(), "annotations": [{"id": 1, "image_id": 1, "category_id": 1}]},
    "category of text": {**tiny_instances(), "categories": ["car"]},
}


@pytest.mark.parametrize("instances", DAMAGED_INSTANCES.values(), ids=DAMAGED_INSTANCES)
def test_damaged_instances_are_named(tmp_path: Path, instances: object) -> None:
    with pytest.raises(UserError, match=r"instances\.json .*docs/data\.md"):
        REFER(write_refer(tmp_path, instances=instances))


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_a_missing_file_is_named_with_the_layout(tmp_path: Path, name: str) -> None:
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / name
    path.unlink()
    with pytest.raises(UserError) as caught:
        REFER(tmp_path)
    for part in (str(path), "DATA_ROOT/DATASET/instances.json", "train2014", "docs/data.md"):
        assert part in str(caught.value)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / "instances.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"instances\.json .*\(Is a directory\)"):
        REFER(tmp_path)
