"""What the flags of the data leave open is filled in as each data set is usually read."""

from __future__ import annotations

from pathlib import Path

import pytest

import test as test_script
import train as train_script
from refer.datasets import COCO_FOLDERS, DATA_SETS, image_folder
from refer.prepare import parse_args
from tests.helpers import naming


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_the_usual_way_of_splitting_is_recorded(dataset: str) -> None:
    """By testing and by `refer.prepare`; training records it, too, if the data set trains."""
    usual, (split, *_) = next(iter(DATA_SETS[dataset].splits.items()))
    args = test_script.parse_args(["--resume", "x.pth", "--dataset", dataset, "--split", split])
    assert (args.splitBy, args.overlap) == (usual, DATA_SETS[dataset].overlap)
    assert parse_args(["--dataset", dataset]).splitBy == usual


@pytest.mark.parametrize(
    ("dataset", "recorded"),
    [("refcoco", "unc"), ("refcocog", "umd"), ("refcoco,refcocog", "unc"), ("refcocog,refcoco", "unc")],
)
def test_states_of_mixed_trainings_go_on(dataset: str, recorded: str) -> None:
    """They were saved with the flag's former default, which stood for all data sets that have it."""
    assert train_script.parse_args(["--dataset", dataset]).splitBy == recorded


@pytest.mark.parametrize(("dataset", "split"), [("refcocom", "val"), ("arefcoco", "test")])
def test_training_on_a_data_set_for_evaluation_is_refused(dataset: str, split: str) -> None:
    with naming(f"--dataset {dataset}", "test.py"):
        train_script.parse_args(["--dataset", dataset, "--split", split])
    assert train_script.parse_args(["--dataset", f"refcoco,{dataset}"]).dataset == f"refcoco,{dataset}"


def test_overlaps_that_differ_are_chosen_by_the_user() -> None:
    with naming("--overlap", "refcoco with background", "grefcoco with object"):
        train_script.parse_args(["--dataset", "refcoco,grefcoco"])
    assert train_script.parse_args(["--dataset", "refcoco,grefcoco", "--overlap", "object"]).overlap == "object"


@pytest.mark.parametrize("folder", COCO_FOLDERS)
def test_images_of_coco_are_found_where_people_keep_them(tmp_path: Path, folder: str) -> None:
    assert image_folder(tmp_path, "refcoco") == tmp_path / COCO_FOLDERS[0]
    (tmp_path / folder).mkdir(parents=True)
    assert image_folder(tmp_path, "refcoco") == image_folder(tmp_path, "grefcoco") == tmp_path / folder
