"""Data flags that are not given get the usual values of each data set."""

from __future__ import annotations

from pathlib import Path

import pytest

import predict
import test as test_script
import train as train_script
from bert.tokenizer import build_tokenizer
from data.dataset_refer_bert import ReferDataset
from data.loaders import build_datasets
from data.transforms import PairTransform
from lib.weights.checkpoint import read_checkpoint
from refer.datasets import COCO_FOLDERS, DATA_SETS, image_folder
from refer.prepare import parse_args
from refer.refer import REFER
from refer.splits import noted_overlap
from tests.helpers import naming


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_the_usual_way_of_splitting_is_recorded(dataset: str) -> None:
    """By testing and by `refer.prepare`; also by training, if the data set trains."""
    usual, (split, *_) = next(iter(DATA_SETS[dataset].splits.items()))
    args = test_script.parse_args(["--resume", "x.pth", "--dataset", dataset, "--split", split])
    assert (args.splitBy, args.overlap) == (usual, DATA_SETS[dataset].overlap)
    assert parse_args(["--dataset", dataset]).splitBy == usual


@pytest.mark.parametrize(
    ("dataset", "recorded"),
    [("refcoco", "unc"), ("refcocog", "umd"), ("refcoco,refcocog", "unc"), ("refcocog,refcoco", "unc")],
)
def test_states_of_mixed_trainings_are_resumed(dataset: str, recorded: str) -> None:
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


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("", 21),
        ("--dataset risbench", 50),
        ("--dataset rrsisd", 22),
        ("--dataset refsegrs", 20),
        ("--dataset refcoco,grefcoco --overlap object", 21),
        ("--dataset jsonl --data a.jsonl", 21),
        ("--dataset risbench --max-tokens 30", 30),
    ],
)
def test_a_training_reads_as_many_tokens_as_is_usual(line: str, tokens: int) -> None:
    assert train_script.parse_args(line.split()).max_tokens == tokens


@pytest.mark.parametrize(
    ("dataset", "overlap", "noted"),
    [
        ("refcoco,grefcoco", "object", {"overlap": "object"}),
        ("refcoco,refcoco+", "background", {}),
        ("grefcoco", "object", {}),
        ("jsonl", "object", {"overlap": "object"}),
    ],
)
def test_scores_note_an_overlap_that_is_not_that_of_all_data_sets(dataset: str, overlap: str, noted: object) -> None:
    assert noted_overlap(dataset, overlap) == noted


def test_more_tokens_than_bert_has_places_for_are_refused() -> None:
    with naming("--max-tokens 65", "--bert_type nano", 64):
        train_script.parse_args(["--bert_type", "nano", "--max-tokens", "65"])
    for value in ("2", "513"):
        with pytest.raises(SystemExit):
            train_script.parse_args(["--max-tokens", value])


def test_samples_have_as_many_tokens(sample_root: Path) -> None:
    """The fingerprint of 21 is that of states that were saved before the flag; another number gives another one."""
    tokenizer = build_tokenizer(str(sample_root / "vocab.txt"))
    prints = {}
    for tokens in (21, 8):
        line = f"--refer_data_root {sample_root} --img_size 8 --max-tokens {tokens}"
        (samples,) = build_datasets(train_script.parse_args(line.split()), ["val"], tokenizer)
        assert samples[0].token_ids.shape == samples[0].attention_mask.shape == (tokens,)
        prints[tokens] = samples.fingerprint()
    transform = PairTransform(8)
    assert prints[21] == ReferDataset(REFER(sample_root), "val", tokenizer, transform).fingerprint() != prints[8]


@pytest.mark.slow  # trains
def test_a_network_of_more_tokens_trains_tests_and_predicts(
    few_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--refer_data_root {few_root} --bert_tokenizer {few_root}/vocab.txt -j 0 --device cpu"
    line = f"{data} --swin_type nano --bert_type nano --img_size 32 --epochs 1 -b 4 --limit-train 4 --limit-val 2"
    train_script.main(f"{line} --max-tokens 40 --output-dir {tmp_path}".split())
    assert "32×32 pixels and 40 tokens" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "last_refcoco.pth").args["max_tokens"] == 40
    with naming("max_tokens", 40, 21):
        train_script.main(f"{line} --output-dir {tmp_path} --resume auto --epochs 2".split())
    assert predict.load(tmp_path / "last_refcoco.pth").max_tokens == 40
    args = test_script.parse_args(f"{data} --resume {tmp_path}/last_refcoco.pth".split())
    assert test_script.open_named(args).max_tokens == args.max_tokens == 40
