"""Data sets whose images lie in different folders as one: reading, leaving out, caching, training, testing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import test as test_script
import train as train_script
from bert.tokenizer import WordPiece, build_tokenizer
from data.cache import open_cache
from data.dataset_refer_bert import ReferDataset
from data.objects import describe_object, open_image_of
from data.transforms import PairTransform
from refer.files import Record
from refer.masks import decode_parts
from refer.mixed import IDS_APART, mix
from refer.open import open_data_set
from refer.refer import Index
from refer.splits import default_split_by
from tests import test_grefer as grefer
from tests.helpers import naming
from tests.refer_fixture import IMAGES, write_images, write_refer, write_vocabulary
from tests.test_lines import write_set
from tests.test_rrsisd import write_rrsisd
from tests.training_runs import training_flags

NAMES = ("refcoco", "rrsisd", "risbench", "grefcoco")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data sets in three folders of images; ids of all kinds are the same numbers in each."""
    folder = tmp_path_factory.mktemp("mixed")
    write_images(write_refer(folder))
    grefer.write(folder)
    write_rrsisd(folder)
    write_set(folder, "risbench")
    write_vocabulary(folder / "vocab.txt")
    return folder


@pytest.fixture
def tokenizer(root: Path) -> WordPiece:
    return build_tokenizer(str(root / "vocab.txt"))


def opened(root: Path) -> list[Index]:
    return [open_data_set(root, name, default_split_by(name), "object") for name in NAMES]


def test_every_object_keeps_its_image_and_its_mask(root: Path) -> None:
    indices = opened(root)
    mixed, left_out = mix(indices)
    kept = [
        (index, own, mixed.Refs[own["ref_id"] + number * IDS_APART])
        for number, index in enumerate(indices)
        for own in index.data["refs"]
        if own["ref_id"] + number * IDS_APART in mixed.Refs
    ]
    assert len(kept) == len(mixed.Refs) == sum(len(index.Refs) for index in indices) - left_out["objects"]
    for index, own, ref in kept:
        assert loaded(mixed, ref) == loaded(index, own)
        assert np.array_equal(decode_parts(mixed.encode_mask(ref)), decode_parts(index.encode_mask(own)))
        assert mixed.has_target(ref) == index.has_target(own)


def loaded(index: Index, ref: Record) -> bytes:
    return open_image_of(describe_object(index, ref), Path(index.IMAGE_DIR)).tobytes()


def test_only_an_image_of_the_same_collection_is_left_out(root: Path) -> None:
    """Image 2 is trained on by RRSIS-D, and tested by RefCOCO, whose image 2 is another one; gRefCOCO tests image 1."""
    mixed, left_out = mix(opened(root))
    names = [mixed.Imgs[ref["image_id"]]["file_name"] for ref in mixed.data["refs"] if ref["split"] == "train"]
    tiles, photos = "RISBench_dataset/img_rgb", "images/rrsisd/JPEGImages"
    assert names == [*(f"{photos}/{n:05}.jpg" for n in (1, 2, 3)), f"{tiles}/1.png", f"{tiles}/2.png"]
    assert left_out == {"images": 1, "objects": 5}


def test_ref_zom_has_cocos_images_in_a_folder_of_its_own(root: Path) -> None:
    """So its test images are left out of RefCOCO's training, though they lie in another folder."""
    refs = [ref | {"split": "train" if ref["split"] == "train" else "test"} for ref in grefer.records()]
    refs[0]["split"] = "test"
    grefer.write(root, refs, name="ref-zom/refs(final).p")
    indices = [open_data_set(root, "refcoco", "unc", "object"), open_data_set(root, "refzom", "final")]
    assert indices[0].IMAGE_DIR != indices[1].IMAGE_DIR
    mixed, left_out = mix(indices)
    assert left_out == {"images": 1, "objects": 4} and not mixed.getRefIds(split="train")
    assert {image["file_name"] for image in mixed.Imgs.values()} == {f"{IMAGES}/{n}.png" for n in (1, 2, 3)}
    indices[1].data["images"][0]["file_name"] = "other.png"
    with naming("images", indices[0].instances_file, indices[1].instances_file, "file_name"):
        mix(indices)


def test_ids_of_one_collection_are_offset_together(root: Path) -> None:
    """An expression without target stays one, and refs and annotations of RRSIS-D still belong together."""
    mixed, _ = mix(opened(root))
    of_sets = [ref for ref in mixed.data["refs"] if ref["ref_id"] > 3 * IDS_APART]
    assert [mixed.meant(ref) for ref in of_sets] == [(103, 104), (), (101, 300), (105,)]
    ship = mixed.Refs[4 + IDS_APART]
    assert (ship["image_id"], ship["ann_id"], ship["category_id"]) == tuple(IDS_APART + n for n in (4, 4, 1))
    assert mixed.Cats[ship["category_id"]] == "ship"


def test_a_bad_mask_is_named_as_in_its_own_data_set(root: Path) -> None:
    indices = opened(root)
    own = indices[1].data["refs"][0]
    indices[1].objects_of(own)[0]["segmentation"] = [[1, 2, 3]]
    mixed, _ = mix(indices)
    (ref,) = (ref for ref in mixed.data["refs"] if ref["ref_id"] == own["ref_id"] + IDS_APART)
    with naming(f"ref_id {own['ref_id']}", indices[1].instances_file):
        mixed.encode_mask(ref)


@pytest.mark.slow  # two trainings
def test_training_and_testing_with_a_cache(root: Path, tmp_path: Path, tokenizer: WordPiece) -> None:
    """Its own validation is what test.py finds from the cache and without it; sentences can be exchanged, too."""
    names = ",".join(NAMES)
    data = ["--dataset", names, "--overlap", "object", "-j", 0]
    flags = training_flags(root, tmp_path, *data, "--cache", tmp_path / "mixed.h5")
    train_script.main([*flags, "--epochs", "1", "-b", "4"])
    mixed, _ = mix(opened(root))
    cache = open_cache(tmp_path / "mixed.h5", mixed, 32, 1)
    with_cache, without = (ReferDataset(mixed, "train", tokenizer, PairTransform(32), cache=c) for c in (cache, None))
    pairs = [(with_cache[number], without[number]) for number in range(len(without))]
    assert len(pairs) == 5 and all(one.image.equal(other.image) for one, other in pairs)
    assert all(one.target.equal(other.target) for one, other in pairs)

    (last,) = map(json.loads, (tmp_path / f"log_{names}.jsonl").read_text().splitlines()[-1:])
    common = ["--refer_data_root", root, *data, "--resume", tmp_path / f"last_{names}.pth", "--device", "cpu"]
    outputs = ["--report", tmp_path / "page", "--predictions", tmp_path / "masks.jsonl"]
    for more in (outputs, ["--cache", tmp_path / "mixed.h5"], ["--shuffle_expressions"]):
        test_script.main(list(map(str, [*common, *more, "--json", tmp_path / "scores.json"])))
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert (scores["dataset"], scores["splitBy"], scores["n_expressions"]) == (names, "unc", 5)
        assert "--shuffle_expressions" in more or scores["giou"] == last["val"]["giou"]
        assert scores["beside"] and scores["counts"]["no_target"] == [0, 0, 0, 0, 1]
    assert "00004.jpg" in (tmp_path / "page/index.html").read_text()
    assert len((tmp_path / "masks.jsonl").read_text().splitlines()) == 5
