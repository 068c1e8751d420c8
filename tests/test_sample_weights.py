"""The small trained network in the repository does something real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import predict
import test as script
from refer.refer import REFER
from tests.training_runs import ROOT

WEIGHTS = ROOT / predict.SAMPLE_WEIGHTS


def test_it_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 8e6


@pytest.mark.slow  # two tests of whole splits
def test_it_finds_objects_of_scenes_it_never_saw(sample_root: Path, tmp_path: Path) -> None:
    """And it reads: with sentences about other objects it fails."""
    scores = {}
    for name, more in (("read", []), ("shuffled", ["--shuffle_expressions"])):
        flags = ["--refer_data_root", sample_root, "--resume", WEIGHTS, "-j", 0, "--json", tmp_path / f"{name}.json"]
        script.main([*map(str, flags), "--device", "cpu", *more])
        scores[name] = json.loads((tmp_path / f"{name}.json").read_text())["overall_iou"]
    assert scores["read"] > 80
    assert scores["shuffled"] < 15


def test_it_segments_a_scene(sample_root: Path) -> None:
    """The predicted masks of most sentences are on the right objects."""
    model, refer = predict.load(WEIGHTS), REFER(sample_root)
    hits = []
    for ref in refer.loadRefs(refer.getRefIds(split="val"))[:10]:
        file = Path(refer.IMAGE_DIR, refer.Imgs[ref["image_id"]]["file_name"])
        found, truth = predict.segment(model, file, ref["sentences"][0]["raw"]).mask, refer.getMask(ref)["mask"]
        hits.append((found & truth).sum() / max(1, (found | truth).sum()) >= 0.5)
    assert sum(hits) >= 8
