"""Real sentences, records and photographs of RefCOCO, which are not in the repository.

These tests run if ../shared/real next to the checkout is a folder of them, or REAL_FILES names one:

    vocab/vocab.txt                        the vocabulary of bert-base-uncased
    splits-refcoco-unc/SPLIT.json.gz       every sentence of val and testA, with IMAGE_REF_SENT.png as its mask's name
    refer-records/DATASET                  refs and instances.json, pickled by Python 2 in protocol 2 and 0
    refer-photos                           a data set of ten photographs in its folder
"""

from __future__ import annotations

import gzip
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

import predict
import test as test_script
from bert.tokenizer import build_tokenizer, read_vocabulary
from refer.refer import REFER
from refer.splits import counts_of

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("REAL_FILES") or ROOT.parent / "shared" / "real")
RECORDS = {  # data set and way of splitting → objects and sentences in refer-records
    ("refcoco", "unc"): (9, 26),
    ("refcoco", "google"): (6, 17),
    ("refcoco+", "unc"): (8, 25),
    ("refcocog", "umd"): (6, 12),
    ("refcocog", "google"): (4, 8),
}

pytestmark = [pytest.mark.real, pytest.mark.skipif(not REAL.is_dir(), reason="needs real files, see REAL_FILES")]


def sentences(split: str) -> list[dict]:
    with gzip.open(REAL / f"splits-refcoco-unc/{split}.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)["items"]


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("split", ["val", "testA"])
def test_published_counts_are_those_of_the_real_splits(split: str) -> None:
    names = [Path(one["mask"]).stem.split("_") for one in sentences(split)]
    objects = {ref_id for _, ref_id, _ in names}
    assert (len(objects), len(names)) == counts_of("refcoco", "unc")[split]


@pytest.mark.parametrize(("dataset", "split_by"), RECORDS)
def test_refs_that_python_2_wrote_are_read_in_both_protocols(tmp_path: Path, dataset: str, split_by: str) -> None:
    folder = REAL / "refer-records" / dataset
    (tmp_path / dataset).mkdir()
    (tmp_path / dataset / "instances.json").symlink_to(folder / "instances.json")
    (tmp_path / dataset / f"refs({split_by}).p").symlink_to(folder / f"refs({split_by}).protocol0.p")
    binary = REFER(REAL / "refer-records", dataset, split_by)
    text = REFER(tmp_path, dataset, split_by)
    assert binary.data == text.data
    assert (len(binary.Refs), len(binary.Sents)) == RECORDS[dataset, split_by]
    of_splits = [binary.getRefIds(split=split) for split in counts_of(dataset, split_by)]
    assert sorted(chain(*of_splits)) == sorted(binary.Refs)
    assert all(of_splits)


@pytest.mark.parametrize(("dataset", "split_by"), [*RECORDS, ("photos", "unc")])
def test_masks_are_those_of_pycocotools(dataset: str, split_by: str) -> None:
    root, dataset = ("refer-photos", "refcoco") if dataset == "photos" else ("refer-records", dataset)
    refer, joined = (REFER(REAL / root, dataset, split_by, overlap) for overlap in ("background", "object"))
    instances: dict[str, Any] = json.loads((REAL / root / dataset / "instances.json").read_text())
    images, annotations = ({one["id"]: one for one in instances[kind]} for kind in ("images", "annotations"))
    for ref in refer.data["refs"]:
        image, parts = images[ref["image_id"]], annotations[ref["ann_id"]]["segmentation"]
        if isinstance(parts[0], list):  # polygons; else run lengths
            parts = coco_mask.frPyObjects(parts, image["height"], image["width"])
        once = coco_mask.decode(parts).sum(axis=2) == 1
        np.testing.assert_array_equal(refer.getMask(ref)["mask"], once)
        np.testing.assert_array_equal(joined.getMask(ref)["mask"], coco_mask.decode(coco_mask.merge(parts)))
        assert once.any()


# ---------------------------------------------------------------- words


def test_every_real_sentence_has_the_ids_of_transformers() -> None:
    from transformers import BertTokenizer

    file = REAL / "vocab/vocab.txt"
    texts = [one["text"] for split in ("val", "testA") for one in sentences(split)]
    assert len(texts) == 10_834 + 5_657
    assert build_tokenizer(str(file))(texts) == BertTokenizer(vocab=str(file))(texts)["input_ids"]


# ---------------------------------------------------------------- photographs


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that knows the real words."""
    from CrossVLT import SegModel
    from lib.weights.layouts import store, write_about
    from utils import seeded

    words = list(read_vocabulary(REAL / "vocab/vocab.txt"))
    with seeded(0):
        network = SegModel("nano", "nano", vocab_size=len(words))
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save_file(store(network.state_dict(), "fp32"), path, write_about({"img_size": 56}, {}, words))
    return path


@pytest.mark.slow
def test_photographs_are_tested_and_looked_at_alike(weights: Path, tmp_path: Path) -> None:
    """test.py's scores are those of the masks that it writes, and predict.py finds the same masks."""
    refer = REFER(REAL / "refer-photos", "refcoco", "unc")
    flags = f"--refer_data_root {refer.ROOT_DIR} --split testA --resume {weights} -j 0 -b 8 --device cpu"
    outputs = f"--eval_ori_size --json {tmp_path}/scores.json --save-masks {tmp_path}/tested"
    test_script.main(f"{flags} {outputs}".split())
    scores = json.loads((tmp_path / "scores.json").read_text())
    tested = [np.asarray(Image.open(file)) > 0 for file in sorted((tmp_path / "tested/masks").iterdir())]

    asked = [(ref, sentence) for ref in refer.data["refs"] for sentence in ref["sentences"]]
    lines = [{"image": refer.Imgs[ref["image_id"]]["file_name"], "text": one["raw"]} for ref, one in asked]
    for line in lines:
        line["image"] = str(Path(refer.IMAGE_DIR, line["image"]))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    predict.main(f"--jsonl {tmp_path}/asked.jsonl --out {tmp_path}/found --resume {weights} --device cpu".split())
    found = [np.asarray(Image.open(file)) > 0 for file in sorted((tmp_path / "found/masks").iterdir())]

    assert scores["n_expressions"] == len(tested) == len(found) == 30
    for one, other in zip(tested, found, strict=True):
        np.testing.assert_array_equal(one, other)
    truths = [refer.getMask(ref)["mask"].astype(bool) for ref, _ in asked]
    both = [(mask & truth).sum() for mask, truth in zip(tested, truths, strict=True)]
    either = [(mask | truth).sum() for mask, truth in zip(tested, truths, strict=True)]
    assert sum(both) > 0
    assert scores["overall_iou"] == round(100 * sum(both) / sum(either), 2)
    assert scores["mean_iou"] == round(100 * np.mean(np.divide(both, either)), 2)


def test_photographs_and_their_records_are_sound() -> None:
    from refer.check import check_files, check_refs

    refer = REFER(REAL / "refer-photos", "refcoco", "unc")
    assert check_refs(refer) + check_files(refer, workers=1) == []
