"""What `--check` finds: a few of each kind, how many there are, and the one cause behind all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from errors import UserError
from refer.check import check_dataset
from refer.datasets import DATA_SETS
from refer.masks import covers_nothing as nothing
from refer.masks import decode_parts, encode_parts
from refer.refer import REFER
from refer.splits import counts_of
from tests.refer_fixture import HEIGHT, WIDTH, box, tiny_instances, tiny_refs, write_images, write_refer


def problems_of(root: Path, refs: Any = None, instances: Any = None) -> list[str]:
    """Return what is wrong with a data set that nobody published counts of."""
    return check_dataset(REFER(write_refer(root, refs, instances, dataset="refclef"), "refclef", "unc"), 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of the tiny data set, as refclef has them."""
    folder = tmp_path / "images/saiapr_tc-12"
    write_images(tmp_path).rename(folder)
    return tmp_path


def test_good_data_have_no_problem(root: Path) -> None:
    assert problems_of(root) == []


NO_PIXEL = {
    "smaller than a pixel": [[5.1, 5.1, 5.3, 5.1, 5.3, 5.3, 5.1, 5.3]],
    "outside the image": [[-90, 10, -20, 10, -20, 40]],
    "collapsed to a point": [[5, 5, 5, 5, 5, 5]],
    "two equal parts": [box(5, 5, 20, 20), box(5, 5, 20, 20)],
    "parts that cover each other": [box(0, 0, 4, 4), box(2, 0, 4, 4), box(0, 0, 2, 4), box(4, 0, 2, 4)],
    "an empty run": [{"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}],
}


@pytest.mark.parametrize("segmentation", NO_PIXEL.values(), ids=NO_PIXEL)
def test_an_object_of_no_pixel_is_named(root: Path, segmentation: list) -> None:
    instances = tiny_instances()
    instances["annotations"][2]["segmentation"] = segmentation
    (problem,) = problems_of(root, instances=instances)
    assert "2.png: object ref_id 3 (ann_id 103, image_id 2) covers no pixel" in problem


def test_no_pixel_means_what_is_drawn() -> None:
    """For random parts, from none to many times covered."""
    random, seen = np.random.default_rng(0), set()
    for _ in range(300):
        corners = random.integers(0, 4, (random.integers(1, 6), 2))
        parts = encode_parts([box(*corner, *random.integers(0, 3, 2)) for corner in corners], 6, 6)
        assert nothing(parts) == (not decode_parts(parts).any())
        seen.add(nothing(parts))
    assert seen == {True, False}


def test_an_object_without_a_sentence_is_named(root: Path) -> None:
    refs = tiny_refs()
    refs[3]["sentences"] = []
    (problem,) = problems_of(root, refs)
    assert "refs(unc).p: object ref_id 4 (ann_id 104, image_id 2) has no sentence" in problem


def test_a_sentence_without_a_word_is_named(root: Path) -> None:
    refs = tiny_refs()
    refs[3]["sentences"][1]["raw"] = " "
    (problem,) = problems_of(root, refs)
    assert "refs(unc).p: object ref_id 4 (ann_id 104, image_id 2)" in problem and problem.endswith("sent_id 6")


def test_an_object_in_no_split_is_named(root: Path) -> None:
    refs = tiny_refs()
    refs[3]["split"] = "tset"
    (problem,) = problems_of(root, refs)
    assert "refs(unc).p: object ref_id 4 (ann_id 104, image_id 2) is in split 'tset'" in problem


def test_a_mask_of_another_image_is_named(root: Path) -> None:
    refs = tiny_refs()
    refs[3]["image_id"] = 3
    (problem,) = problems_of(root, refs)
    assert "object ref_id 4" in problem and "on another image, image_id 2" in problem


def test_points_given_as_pairs_are_reported(root: Path) -> None:
    instances = tiny_instances()
    instances["annotations"][0]["segmentation"] = [[[5, 5], [25, 5], [25, 25], [5, 25]]]
    (problem,) = problems_of(root, instances=instances)
    assert "nested pairs" in problem


def test_one_cause_comes_before_a_few_of_many(tmp_path: Path) -> None:
    """If all images are missing, one line is printed instead of one for each."""
    refs, instances = tiny_refs()[:1], tiny_instances()
    image, ann = instances["images"][0], instances["annotations"][0]
    for number in range(20):
        ids = {"image_id": 50 + number, "ref_id": 50 + number, "ann_id": 500 + number}
        refs.append(refs[0] | ids | {"sentences": [refs[0]["sentences"][0] | {"sent_id": 50 + number}]})
        instances["images"].append(image | {"id": 50 + number, "file_name": f"{number}.jpg"})
        instances["annotations"].append(ann | {"id": 500 + number, "image_id": 50 + number})
    cause, *named, rest = problems_of(tmp_path, refs, instances)
    assert cause.startswith(f"none of the 21 images is in {tmp_path / 'images/saiapr_tc-12'}: they are elsewhere")
    assert len(named) == 5 and all(line.endswith("is missing") for line in named)
    assert rest == "… and 16 more like these, 21 in all"


def test_each_kind_is_counted_for_itself(root: Path) -> None:
    refs, instances = tiny_refs(), tiny_instances()
    for ref in refs[1:]:
        ref["sentences"] = []
    for ann in instances["annotations"]:
        ann["segmentation"] = [[5, 5, 5, 5, 5, 5]]
    found = problems_of(root, refs, instances)
    assert [sum(words in line for line in found) for words in ("no sentence", "no pixel")] == [5, 5]
    assert found[-1] == "… and 1 more like these, 6 in all"


def test_published_objects_are_compared_where_nobody_counted_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counts_of("refcoco", "google") == {"train": (40_000, None), "val": (5_000, None), "test": (5_000, None)}
    refer = REFER(write_refer(tmp_path, split_by="google"), "refcoco", "google")
    found = [line for line in check_dataset(refer, 1) if "published are" in line]
    assert found[0].endswith(
        "refs(google).p: train has 2 objects, 4 expressions and 1 images, published are 40,000 objects"
    )
    monkeypatch.setitem(
        DATA_SETS["refcoco"].counts, "google", {"train": (2, None), "val": (1, None), "test": (3, None)}
    )
    assert not any("published are" in line for line in check_dataset(refer, 1))
    assert "test: 3 objects, 4 expressions" in capsys.readouterr().out


# ---------------------------------------------------------------- ids


def twice(kind: str, key: str) -> Callable[[Any, Any], None]:
    def change(refs: Any, instances: Any) -> None:
        records = instances[kind]
        records.append(records[-1] | {key: records[0][key]})

    return change


def ref_twice(refs: Any, instances: Any) -> None:
    refs[4]["ref_id"] = 2


def sentence_twice(refs: Any, instances: Any) -> None:
    refs[3]["sentences"][1]["sent_id"] = 0


TWICE = {
    "image": (twice("images", "id"), r"instances\.json: id of an image occurs more than once: 1$"),
    "annotation": (twice("annotations", "id"), r"instances\.json: id of an annotation occurs more than once: 101$"),
    "category": (twice("categories", "id"), r"instances\.json: id of a category occurs more than once: 5$"),
    "ref": (ref_twice, r"refs\(unc\)\.p: ref_id occurs more than once: 2$"),
    "sentence": (sentence_twice, r"refs\(unc\)\.p: sent_id occurs more than once: 0 \(of ref_id 1, 4\)$"),
}


@pytest.mark.parametrize(("change", "message"), TWICE.values(), ids=TWICE)
def test_duplicate_ids_are_refused(tmp_path: Path, change: Callable, message: str) -> None:
    """The last one would win, and objects get each other's masks."""
    refs, instances = tiny_refs(), tiny_instances()
    change(refs, instances)
    with pytest.raises(UserError, match=rf"(?m){message}"):
        REFER(write_refer(tmp_path, refs, instances))


def test_many_duplicate_ids_are_counted(tmp_path: Path) -> None:
    instances = tiny_instances()
    instances["annotations"] *= 2
    with pytest.raises(UserError, match=r"(?m)101, 102, 103, 104, 105 and 2 more$"):
        REFER(write_refer(tmp_path, instances=instances))
