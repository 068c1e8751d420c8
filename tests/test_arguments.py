"""The command lines people already use, pinned."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import test as test_script
import train as train_script
import utils
from lib.arguments import MAX_IMAGE_SIDE, Parser, image_side, non_negative_int, positive_int, seconds, worker_count
from refer.refer import OVERLAPS
from tests.helpers import naming

RELEASED_FLAGS = {
    "--model_id model": ("model_id", "model"),
    "--dataset refcoco": ("dataset", "refcoco"),
    "-b 6": ("batch_size", 6),
    "--batch-size 6": ("batch_size", 6),
    "-j 2": ("workers", 2),
    "--workers 2": ("workers", 2),
    "--print-freq 10": ("print_freq", 10),
    "--local_rank 0": ("local_rank", 0),
    "--local-rank 0": ("local_rank", 0),
    "--device cpu": ("device", "cpu"),
    "--resume x.pth": ("resume", "x.pth"),
    "--bert_tokenizer bert-base-uncased": ("bert_tokenizer", "bert-base-uncased"),
    "--ck_bert bert-base-uncased": ("ck_bert", "bert-base-uncased"),
    "--split val": ("split", "val"),
    "--refer_data_root ./refer/data/": ("refer_data_root", "./refer/data/"),
    "--splitBy unc": ("splitBy", "unc"),
    "--swin_type base": ("swin_type", "base"),
    "--pretrained_swin_weights x.pth": ("pretrained_swin_weights", "x.pth"),
    "--ddp_trained_weights": ("ddp_trained_weights", True),
    "--pin_mem": ("pin_mem", True),
    "--img_size 480": ("img_size", 480),
    "--seed 12345": ("seed", 12345),
    "--epochs 40": ("epochs", 40),
    "--lr 0.00003": ("lr", 3e-5),
    "--wd 0.01": ("weight_decay", 0.01),
    "--weight-decay 0.01": ("weight_decay", 0.01),
    "--amsgrad": ("amsgrad", True),
    "--output-dir ./checkpoints/": ("output_dir", "./checkpoints/"),
    "--window12": ("window12", True),
}
DEFAULTS = {
    "model_id": "model",
    "dataset": "refcoco",
    "batch_size": 6,
    "epochs": 40,
    "workers": 2,
    "lr": 3e-5,
    "weight_decay": 0.01,
    "amsgrad": False,
    "print_freq": 10,
    "output_dir": "./checkpoints/",
    "resume": "",
    "bert_tokenizer": "bert-base-uncased",
    "split": "val",
    "refer_data_root": "./refer/data/",
    "splitBy": "unc",
    "swin_type": "base",
    "bert_type": "base",
    "pin_mem": False,
    "img_size": 480,
    "seed": 12345,
    "window12": False,
}


def parse(script: ModuleType, line: str) -> argparse.Namespace:
    return script.parse_args(line.split())


@pytest.mark.parametrize("line", RELEASED_FLAGS)
@pytest.mark.parametrize("script", [train_script, test_script], ids=["train", "test"])
def test_flags_of_the_released_code_are_accepted(script: ModuleType, line: str) -> None:
    name, value = RELEASED_FLAGS[line]
    args = parse(script, line if "--resume" in line else f"--resume x.pth {line}")
    several = script is test_script and name == "split"  # a test takes more than one
    assert getattr(args, name) == ([value] if several else value)


def test_defaults_of_the_released_code() -> None:
    args = vars(parse(train_script, ""))
    assert {name: args[name] for name in DEFAULTS} == DEFAULTS
    assert args["device"] is None  # what the machine has


def test_published_command_lines() -> None:
    args = parse(
        train_script,
        "--local-rank=1 --dataset refcocog --splitBy umd --swin_type base --lr 0.00003 --epochs 40 --img_size 480",
    )
    assert (args.dataset, args.splitBy, args.epochs) == ("refcocog", "umd", 40)
    args = parse(
        test_script,
        "--swin_type base --dataset refcoco --split testA --resume ./checkpoints/best_refcoco.pth --workers 1 "
        "--img_size 480",
    )
    assert (args.swin_type, args.split, args.workers, args.img_size) == ("base", ["testA"], 1, 480)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--window12 --swin_type tiny", ["--window12", "--swin_type tiny", 7, "base", "large", 12]),
        ("--dataset refcoc", ["refcoc split by unc", "refcocog (umd)"]),
        ("--dataset refcoco,refcocogg", ["refcocogg split by unc", "refcocog (umd)"]),
        ("--dataset refcoco --splitBy umd", ["refcoco split by umd", "refcocog (umd)"]),
        ("--dataset refcoco,refcocog --splitBy unc,umd,unc", ["--splitBy unc,umd,unc", 3, 2, "refcoco,refcocog"]),
        ("--split testC", ["refcoco (unc)", "'testC'", "train, val, testA, testB"]),
        ("--dataset jsonl", ["--dataset jsonl", "--data"]),
        ("--data x.jsonl", ["--dataset jsonl", "--data"]),
    ],
)
def test_contradictions_are_refused(line: str, named: list[object]) -> None:
    for script in (train_script, test_script):
        with naming(*named):
            parse(script, f"--resume x.pth {line}")


NAMES = ["--split test", "--dataset refcoco,refcocog --split testA", "--dataset jsonl --data x.jsonl"]


@pytest.mark.parametrize("line", NAMES)
def test_splits_that_exist_are_accepted(line: str) -> None:
    """`test` is every kind of test; of several data sets one must have the split; files are not looked at yet."""
    parse(train_script, line)


VALUES = ["--batch-size 0", "--epochs -1", "--workers -1", "--lr x", "--lr -1", "--lr nan", "--device gpu"]
CHOICES = ["--swin_type huge", "--bert_type tiny", "--fusion early", "--loss mse", "--precision int8"]


@pytest.mark.parametrize("line", VALUES + CHOICES)
def test_values_out_of_range_are_refused(line: str) -> None:
    with pytest.raises(SystemExit):
        parse(train_script, line)


def test_missing_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert utils.find_device() == torch.device("cpu")
    with naming("--device cuda", "--device cpu"):
        utils.find_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert utils.find_device() == torch.device("cuda")
    assert utils.find_device("cuda:1") == torch.device("cuda", 1)
    with naming("--device cuda:2", 2):
        utils.find_device("cuda:2")


def test_overlap_is_what_the_index_knows() -> None:
    for script in (train_script, test_script):
        for overlap in OVERLAPS:
            assert parse(script, f"--resume x.pth --overlap {overlap}").overlap == overlap
        assert parse(script, "--resume x.pth").overlap == "background"
        with pytest.raises(SystemExit):
            parse(script, "--resume x.pth --overlap union")


def test_testing_needs_weights() -> None:
    with naming("--resume"):
        parse(test_script, "--split val")


@pytest.mark.parametrize("line", [["--split", ""], ["--split="], ["--split", " "], ["--data", "a", ""], ["", "-j"]])
@pytest.mark.parametrize("script", [train_script, test_script])
def test_an_empty_value_is_a_mistake(script: ModuleType, line: list[str], capsys: pytest.CaptureFixture) -> None:
    """It results from an unset shell variable, and would be taken as a default or as this folder."""
    with pytest.raises(SystemExit) as ended:
        script.parse_args(line)
    assert ended.value.code == 2
    assert "is empty: is a shell variable not set?" in capsys.readouterr().err


def test_an_empty_value_of_a_command_in_a_command(capsys: pytest.CaptureFixture) -> None:
    parser = Parser("name")
    parser.add_subparsers(dest="command").add_parser("show").add_argument("file")
    assert parser.parse_args(["show", "a"]).file == "a"
    with pytest.raises(SystemExit):
        parser.parse_args(["show", ""])
    assert "show is empty" in capsys.readouterr().err


@pytest.mark.parametrize("parse", [non_negative_int, positive_int, worker_count, seconds, image_side])
@pytest.mark.parametrize("text", ["-1", str(2**63), "9" * 5000, "1e400", "nan", "inf", "x"])
def test_numbers_too_large_for_a_computer_are_refused(parse: Callable[[str], object], text: str) -> None:
    assert parse("1") == 1
    with pytest.raises((argparse.ArgumentTypeError, ValueError)) as caught:
        parse(text)
    assert len(str(caught.value)) < 200


def test_images_are_as_large_as_weights_may_say() -> None:
    assert image_side(str(MAX_IMAGE_SIDE)) == MAX_IMAGE_SIDE
    for value in (0, MAX_IMAGE_SIDE + 1):
        with pytest.raises(argparse.ArgumentTypeError):
            image_side(str(value))
