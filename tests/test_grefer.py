"""Data sets whose sentences mean any number of objects, in their owners' layouts, and gRefCOCO's own calls."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert.tokenizer import WordPiece, build_tokenizer
from data.cache import open_cache
from data.dataset_refer_bert import ReferDataset
from data.loaders import evaluation_loader
from data.transforms import PairTransform
from errors import UserError
from refer.check import check_dataset
from refer.grefer import G_REFER, SetIndex
from refer.masks import decode_parts
from refer.mixed import IDS_APART, mix
from refer.open import open_data_set
from refer.refer import REFER
from tests.refer_fixture import (
    HEIGHT,
    WIDTH,
    box,
    box_mask,
    tiny_instances,
    tiny_refs,
    write_images,
    write_refer,
    write_vocabulary,
)

CAR, THING = box_mask(5, 5, 10, 8), box_mask(0, 0, 30, 10)
CROWD = {"id": 300, "image_id": 1, "category_id": 5, "bbox": [0, 20, 9, 9], "segmentation": [box(0, 20, 9, 9)]}
NOTHING = np.zeros((HEIGHT, WIDTH), np.uint8)

# By ref_id: split, image, objects, mask.
ROWS = {
    1: ("train", 1, [101], CAR),
    2: ("train", 1, [101, 102], CAR | THING),
    3: ("train", 1, [-1], NOTHING),
    4: ("val", 2, [103, 104], CAR),
    5: ("val", 2, [-1], NOTHING),
    6: ("testA", 1, [101, 300], CAR),
    7: ("testB", 3, [105], CAR),
}


def records() -> list[dict[str, Any]]:
    """Return refs as gRefCOCO has them; the file of an image is named as some of them are."""
    refs = []
    for ref_id, (split, image_id, ann_id, _) in ROWS.items():
        text = f"car number {ref_id}"
        sentence = {"sent_id": 10 + ref_id, "raw": text, "sent": text, "tokens": text.split(), "exist": ann_id != [-1]}
        ids = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "category_id": [5] * len(ann_id)}
        name = {"file_name": f"COCO_train2014_{image_id:012}_16.jpg", "split": split, "no_target": ann_id == [-1]}
        refs.append(ids | name | {"sentences": [sentence], "sent_ids": [10 + ref_id]})
    return refs


def with_crowd() -> dict[str, Any]:
    instances = tiny_instances()
    instances["annotations"].append(CROWD | {"iscrowd": 1})
    return instances


def write(root: Path, refs: Any = None, instances: Any = None, name: str = "grefcoco/grefs(unc).json") -> Path:
    """Write a data set without images and return its root."""
    file = root / name
    file.parent.mkdir(exist_ok=True, parents=True)
    refs = records() if refs is None else refs
    file.write_bytes(pickle.dumps(refs) if file.suffix == ".p" else json.dumps(refs).encode())
    file.with_name("instances.json").write_text(json.dumps(with_crowd() if instances is None else instances))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A gRefCOCO of seven refs, with its images."""
    write_images(tmp_path)
    return write(tmp_path)


@pytest.fixture
def refer(root: Path) -> G_REFER:
    return G_REFER(root)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> WordPiece:
    return build_tokenizer(str(write_vocabulary(tmp_path_factory.mktemp("words") / "vocab.txt")))


# ---------------------------------------------------------------- masks


def test_a_mask_is_the_union_of_the_objects(refer: G_REFER) -> None:
    """Without crowds, with the parts of an object joined, and empty if a sentence has no target."""
    for ref_id, (*_, mask) in ROWS.items():
        (ref,) = refer.loadRefs(ref_id)
        assert np.array_equal(decode_parts(refer.encode_mask(ref)), mask), ref_id
        assert refer.has_target(ref) == mask.any()


def test_parts_may_overlap_as_in_refcoco_if_asked_for(root: Path) -> None:
    """Within an object; pixels shared by two objects are object."""
    refer = G_REFER(root, overlap="background")
    thing = box_mask(0, 0, 10, 10) | box_mask(20, 0, 10, 10)
    assert np.array_equal(decode_parts(refer.encode_mask(refer.Refs[2])), CAR | thing)


def test_an_image_of_impossible_size_is_refused(root: Path) -> None:
    instances = with_crowd()
    instances["images"][0]["height"] = 0
    refer = G_REFER(write(root, instances=instances))
    with pytest.raises(UserError, match=r"ref_id 3 .*would be 40×0 pixels"):
        refer.encode_mask(refer.Refs[3])


# ---------------------------------------------------------------- gRefCOCO's API


def test_maps_and_boxes_are_lists(refer: G_REFER) -> None:
    assert refer.Anns[-1] is None
    assert refer.refToAnn[2] == [refer.Anns[101], refer.Anns[102]] and refer.refToAnn[3] == [None]
    assert [ref["ref_id"] for ref in refer.annToRef[101]] == [1, 2, 6]
    assert [ref["ref_id"] for ref in refer.annToRef[-1]] == [3, 5]
    assert [ref["ref_id"] for ref in refer.catToRefs[5]] == [1, 2, 3, 4, 5, 6, 7]
    assert (refer.getRefBox(2), refer.getRefBox(3)) == ([[5, 5, 10, 8]] * 2, [])
    assert refer.sentToRef[12] == refer.Refs[2] and refer.sentToTokens[12] == ["car", "number", "2"]


def test_ids_by_several_splits(refer: G_REFER) -> None:
    assert refer.getRefIds(split=["val", "testB"]) == [4, 5, 7]
    assert refer.getRefIds(split="val", cat_ids=5) == [4, 5] and refer.getRefIds(split=[]) == list(ROWS)
    assert refer.getRefIds(split=["val"], image_ids=3) == []
    with pytest.raises(UserError, match="no split 'testC'"):
        refer.getRefIds(split=["testC"])
    assert refer.getAnnIds(ref_ids=[2, 4]) == [101, 102, 103, 104] and refer.getAnnIds(ref_ids=3) == []


def test_masks_by_ref(refer: G_REFER) -> None:
    merged = refer.getMaskByRef(refer.Refs[2], merge=True)
    assert isinstance(merged, dict) and np.array_equal(merged["mask"], CAR | THING) and merged["empty"] is False
    nothing = refer.getMaskByRef(ref_id=3)
    assert isinstance(nothing, dict) and not nothing["mask"].any() and nothing["empty"] is True
    single = refer.getMaskByRef(ref_id=2)
    assert isinstance(single, list) and [mask["area"] for mask in single] == [CAR.sum(), THING.sum()]
    assert len(refer.getMaskByRef(ref_id=6)) == 1, "without the crowd"
    with pytest.raises(UserError, match="needs a ref"):
        refer.getMaskByRef()


def test_masks_by_annotation(refer: G_REFER) -> None:
    found = refer.getMask(refer.Anns[101])
    assert found and np.array_equal(found["mask"], CAR) and found["area"] == CAR.sum()
    assert refer.getMask(refer.Anns[-1]) is None
    with pytest.raises(UserError, match=r"annotation 300 .* crowd"):
        refer.getMask(refer.Anns[300])


# ---------------------------------------------------------------- files


def test_the_pickle_is_looked_for_first(root: Path) -> None:
    write(root, records()[:3], name="grefcoco/grefs(unc).p")
    refer = G_REFER(root)
    assert list(refer.Refs) == [1, 2, 3] and refer.refs_file.name == "grefs(unc).p"


def zero_records() -> list[dict[str, Any]]:
    refs = [ref | {"source": "coco"} for ref in records()[:4]]
    refs[0]["ann_id"], refs[2]["ann_id"], refs[3]["ann_id"] = 101, [], [103]
    refs[2] |= {"source": "zero", "category_id": None}
    refs[3] |= {"source": "zero", "split": "test"}
    return refs


@pytest.mark.parametrize("name", ["ref-zom/refs(final).p", "ref-zom/Ref-ZOM(final).p", "refzom/refs(final).p"])
def test_ref_zom_in_every_place(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An id, a list of them, [], and a ref of source "zero", whatever its ids are."""
    refer = open_data_set(write(tmp_path, zero_records(), name=name), "refzom", "final")
    assert [refer.meant(ref) for ref in refer.data["refs"]] == [(101,), (101, 102), (), ()]
    assert [int(refer.getMask(ref)["area"]) for ref in refer.data["refs"]] == [CAR.sum(), (CAR | THING).sum(), 0, 0]
    assert refer.getRefIds(split="test") == [4] and refer.getRefIds(cat_ids=5) == [1, 2, 4]
    assert "refs of source 'zero' with objects, which are ignored: ref_id 4" in capsys.readouterr().out


def test_of_refs_with_one_id_the_last_counts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = records()
    refs[0]["ref_id"] = 2
    refer = G_REFER(write(root, refs))
    assert list(refer.Refs) == [2, 3, 4, 5, 6, 7] and refer.Refs[2]["ann_id"] == [101, 102]
    assert 11 not in refer.Sents
    assert "grefs(unc).json: several refs have ref_id 2" in capsys.readouterr().out


def test_an_object_that_a_ref_names_twice_counts_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refs = records()
    refs[1]["ann_id"] = [101, 102, 101]
    refer = G_REFER(write(root, refs))
    assert refer.meant(refer.Refs[2]) == (101, 102)
    assert "counts once: ref_id 2" in capsys.readouterr().out


def changed(number: int, **values: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda refs: refs[number].update(values)


HOSTILE = {
    "an unknown object": (changed(1, ann_id=[101, 999]), r"ref_id 2 .*ann_id 999 is not in"),
    "an unknown image": (changed(1, image_id=9), r"ref_id 2 .*image_id 9 is not in"),
    "nothing beside objects": (changed(1, ann_id=[101, -1]), r"ref_id 2 .*also -1"),
    "an id of another type": (changed(1, ann_id=["101"]), r"ref_id 2 .*no list of ids as 'ann_id'"),
    "no list of objects": (changed(1, ann_id="101"), r"no valid 'ann_id' in ref number 1"),
    "no category's id": (changed(1, category_id=[None]), r"ref_id 2 .*no list of ids as 'category_id'"),
    "a sentence of two refs": (changed(1, sentences=records()[0]["sentences"]), r"sent_id.*11 \(of ref_id 1, 2\)"),
    "a sentence without text": (changed(1, sentences=[{"sent_id": 5}]), r"ref_id 2"),
    "no ref": (list.clear, r"no list of records"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_bad_refs_are_named(root: Path, change: Callable[[list[dict[str, Any]]], object], message: str) -> None:
    refs = records()
    change(refs)
    with pytest.raises(UserError, match=message) as refusal:
        G_REFER(write(root, refs))
    assert "grefs(unc).json" in str(refusal.value)


@pytest.mark.parametrize("content", [b"[", b"[" * 100_000, b'{"refs": []}', b"\x80\x04cos\nsystem\n."])
@pytest.mark.parametrize("suffix", [".json", ".p"])
def test_damaged_files_are_named(root: Path, content: bytes, suffix: str) -> None:
    (root / f"grefcoco/grefs(unc){suffix}").write_bytes(content)
    with pytest.raises(UserError, match=rf"grefs\(unc\)\{suffix}"):
        G_REFER(root)


def test_possible_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grefcoco/grefs\(unc\)\.p or .*grefs\(unc\)\.json"):
        G_REFER(tmp_path)
    with pytest.raises(UserError, match="REFER reads it"):
        G_REFER(tmp_path, "refcoco")


def test_an_annotation_must_not_have_the_id_of_no_target(root: Path) -> None:
    instances = with_crowd()
    instances["annotations"][-1]["id"] = -1
    with pytest.raises(UserError, match="annotation with id -1"):
        G_REFER(write(root, records()[:3], instances))


# ---------------------------------------------------------------- samples


def test_samples_of_any_number_of_objects(refer: G_REFER, tokenizer: WordPiece) -> None:
    """Those that mean nothing are no faults: they are trained on. The image's own record names its file."""
    dataset = ReferDataset(refer, "train", tokenizer, PairTransform(20), without_empty=True)
    assert [one.ann_id for one in dataset.expressions] == [(101,), (101, 102), ()]
    assert dataset.no_target == [False, False, True] and dataset.empty == []
    assert [bool(dataset[number].target.any()) for number in range(3)] == [True, True, False]
    assert {dataset.image_path(number).name for number in range(3)} == {"1.png"}
    batches = evaluation_loader(dataset, batch_size=2, workers=0, pin_memory=False)
    assert [batch.stacked_target.flatten(1).any(1).tolist() for batch in batches] == [[True, True], [False]]


def test_refs_without_sentence_and_those_of_crowds_only_are_ignored(root: Path, tokenizer: WordPiece) -> None:
    refs = records()
    refs[0]["ann_id"], refs[1]["sentences"] = [300], []
    dataset = ReferDataset(G_REFER(write(root, refs)), "train", tokenizer, PairTransform(20), without_empty=True)
    assert (dataset.empty, dataset.without_sentence) == ([1], [2])
    assert [one.ref_id for one in dataset.expressions] == [3]


def test_sentences_without_target_are_also_shuffled(root: Path, tokenizer: WordPiece) -> None:
    refs = [ref | {"split": "train"} for ref in records() if ref["ref_id"] in (1, 3, 5)]
    dataset = ReferDataset(G_REFER(write(root, refs)), "train", tokenizer, PairTransform(20))
    shuffled = dataset.with_shuffled_expressions(0)
    assert sorted(one.sent_id for one in shuffled.expressions) == [11, 13, 15] and shuffled.no_target == [
        False,
        True,
        True,
    ]
    assert all(a.sent_id != b.sent_id for a, b in zip(dataset.expressions, shuffled.expressions, strict=True))


def test_a_cache_holds_the_same_samples(refer: G_REFER, tokenizer: WordPiece, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache.h5", refer, 24, 1)
    read, cached = (ReferDataset(refer, "train", tokenizer, PairTransform(24), cache=one) for one in (None, cache))
    for one, other in zip((read[n] for n in range(len(read))), (cached[n] for n in range(len(cached))), strict=True):
        assert one.image.equal(other.image) and one.target.equal(other.target)


def test_a_fingerprint_covers_the_targets(refer: G_REFER, root: Path, tokenizer: WordPiece) -> None:
    def fingerprint(index: SetIndex) -> str:
        return ReferDataset(index, "train", tokenizer, PairTransform(20)).fingerprint()

    refs = records()
    refs[2]["ann_id"] = [101]
    assert fingerprint(refer) == fingerprint(G_REFER(root)) != fingerprint(G_REFER(write(root, refs)))


def test_mixed_with_refcoco_no_image_of_a_test_is_trained_on(root: Path, tokenizer: WordPiece) -> None:
    """gRefCOCO tests on image 1 and 2, RefCOCO on 2 and 3: nothing is left of either's training on image 1."""
    refs, extra = tiny_refs(), with_crowd()
    extra["images"].append({"id": 4, "file_name": "3.png", "height": HEIGHT, "width": WIDTH})
    refs[0]["image_id"] = 4
    ours = [ref | {"image_id": 4} if ref["ref_id"] == 3 else ref for ref in records()]
    write(write_refer(root, refs, extra), ours, extra)
    mixed, left_out = mix([REFER(root, overlap="object"), G_REFER(root)])
    assert left_out == {"images": 1, "objects": 3}
    assert mixed.getRefIds(split="train") == [1, 3 + IDS_APART]
    assert [mixed.meant(mixed.Refs[key]) for key in (1, 3 + IDS_APART)] == [(101,), ()]
    assert ReferDataset(mixed, "train", tokenizer, PairTransform(20)).no_target == [False] * 3 + [True]
    assert np.array_equal(mixed.getMask(mixed.Refs[4 + IDS_APART])["mask"], CAR)


def test_checking_looks_at_every_object_once(root: Path) -> None:
    refs = records()
    refs[3]["ann_id"] = [103, 101]
    instances = with_crowd()
    instances["annotations"][0]["segmentation"] = [box(90, 90, 5, 5)]
    instances["annotations"][1]["segmentation"] = [box(0, 0, 9, 9)] * 2  # joined, so it has pixels
    found = check_dataset(G_REFER(write(root, refs, instances)), 1)
    other = [line for line in found if "published" not in line]
    assert sum("covers no pixel" in line for line in other) == 2, "annotation 101, in both images"
    assert sum("ref_id 4" in line and "image_id 1" in line for line in other) == 1
    assert len(other) == 3
