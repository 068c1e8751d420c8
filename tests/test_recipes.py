"""Named recipes: what they set, that flags override them, and that everything new resumes exactly."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import predict
import test
import train
from bert.tokenizer import build_tokenizer
from data.loaders import Batching, build_datasets
from errors import UserError
from lib.options import FIXED_NAMES, RECIPE_NAMES
from lib.recipes import RECIPES, SET_BY_RECIPES
from lib.weights.card import describe_recipe
from tests.helpers import naming
from tests.resume_worker import after, send_signal
from tests.training_runs import differences, training_flags

# CARIS's schedule, the weights of RMSIN's loss (0.9 and 0.1, here relative to the cross-entropy) and MaskRIS's shares.
CARISV = {"epochs": 50, "lr": 1e-4, "encoder_lr_scale": 0.1, "warmup": 1500, "clip_grad": 1.0, "train_embeddings": True}
STRONG = CARISV | {"loss": "ce+dice2", "dice_weight": 0.1, "mask_image": 0.75, "mask_text": 0.15}


def values(*flags: str) -> dict[str, object]:
    return vars(train.parse_args(flags))


@pytest.mark.parametrize(("name", "expected"), [("paper", {}), ("carisv", CARISV), ("strong", STRONG)])
def test_a_recipe_sets_its_values_and_nothing_else(name: str, expected: dict[str, object]) -> None:
    assert values("--recipe", name) == values() | expected | {"recipe": name}


def test_every_value_of_a_recipe_is_in_model_cards_and_fixed_for_a_run() -> None:
    assert set(SET_BY_RECIPES) == {name for recipe in RECIPES.values() for name in recipe}
    assert {"recipe", *SET_BY_RECIPES} <= set(RECIPE_NAMES) & set(FIXED_NAMES)
    card = describe_recipe(values("--recipe", "strong"))
    assert {f"- {name}: {value}" for name, value in STRONG.items()} <= set(card.splitlines())


def test_flags_override_a_recipe_wherever_they_stand() -> None:
    changed = {"lr": 5e-5, "train_embeddings": False, "mask_image": 0.0}
    flags = ["--lr", "5e-5", "--recipe", "strong", "--no-train-embeddings", "--mask-image", "0"]
    args = values(*flags)
    assert args == values("--recipe", "strong") | changed
    text = train.describe_recipe(Namespace(**args))
    assert text.startswith("recipe strong: ") and text.endswith("changed by flags: lr, train_embeddings, mask_image")
    assert all(f"{name} {args[name]}" in text for name in STRONG)


@pytest.mark.parametrize(("loss", "weight"), [("ce", None), ("dice2", None), ("ce+dice", 0.1)])
def test_another_loss_overrides_a_recipe_and_its_weight_of_dice(loss: str, weight: float | None) -> None:
    changed = {"loss": loss, "dice_weight": weight}
    assert values("--recipe", "strong", "--loss", loss) == values("--recipe", "strong") | changed


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ("--dice-weight 0.5", ["--dice-weight", "ce"]),
        ("--loss dice2 --dice-weight 0.5", ["--dice-weight", "dice2"]),
        ("--no-alignment --align-temperature 0.1", ["--align-temperature", "--no-alignment"]),
        ("--no-alignment --align-prior 0.1 --align-loss balanced", ["--align-prior", "--align-loss"]),
        ("--no-alignment --train-temperature", ["--train-temperature", "--no-alignment"]),
        ("--mask-text 0.15 --mask-patch 8", ["--mask-patch 8", "--mask-image"]),
        ("--recipe strong --loss dice2 --dice-weight 0.5", ["--dice-weight", "dice2"]),
    ],
)
def test_flags_without_an_effect_are_refused(flags: str, parts: list[str]) -> None:
    with naming(*parts):
        train.parse_args(flags.split())


@pytest.mark.parametrize("flags", ["--align-prior 1", "--align-prior 0", "--mask-image 1", "--encoder-lr-scale 0"])
def test_values_out_of_bounds_are_refused(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse_args(flags.split())
    assert flags.split()[0] in capsys.readouterr().err


FEW = ["--epochs", "1", "--limit-train", "12", "--limit-val", "2", "-b", "6", "-j", "0"]


def test_a_warmup_as_long_as_the_training_is_refused(few_root: Path, tmp_path: Path) -> None:
    with naming("--warmup", "1500", "100"):
        train.main(training_flags(few_root, tmp_path, *FEW, "--recipe", "carisv", "--epochs", "50"))


def test_patches_that_leave_nothing_are_refused(few_root: Path, tmp_path: Path) -> None:
    with naming("--mask-image", "--mask-patch", "32"):
        train.main(training_flags(few_root, tmp_path, *FEW, "--mask-image", "0.5"))


@pytest.mark.parametrize("max_words", [None, 3])
def test_only_short_sentences_are_trained_on(sample_root: Path, tmp_path: Path, max_words: int | None) -> None:
    """The validation still takes all sentences."""
    short = () if max_words is None else ("--max-words", max_words)
    args = train.parse_args(training_flags(sample_root, tmp_path, *short, "--limit-train", "20", "-j", "0"))
    train_set, val_set = build_datasets(args, ["train", "val"], build_tokenizer(args.bert_tokenizer), training=True)
    batches, _, val_loader = train.build_loaders(args, Batching(4), train_set, val_set, torch.device("cpu"))
    lengths = [len(train_set.expressions[number].text.split()) for objects in batches.objects for number in objects]
    assert len(batches.objects) == 20
    assert max(lengths) <= (max_words or 27) and (max_words is not None or max(lengths) > 3)
    assert sum(map(len, val_loader.batches)) == len(val_set)


EVERYTHING = "--recipe strong --warmup 1 --mask-patch 8 --align-prior 0.05 --align-temperature 0.2 --train-temperature"


@pytest.fixture(scope="module")
def runs(few_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training with everything new, and the same interrupted after its first of two steps."""
    folder = tmp_path_factory.mktemp("recipes")
    whole, pieces = (
        training_flags(few_root, folder / name, *EVERYTHING.split(), *FEW, "--resume", "auto")
        for name in ("whole", "pieces")
    )
    train.main(whole)
    with after("train_step", 1, send_signal):
        train.main(pieces)
    assert '"kind": "epoch"' not in (folder / "pieces/log_refcoco.jsonl").read_text()
    train.main(pieces)
    return folder / "whole/last_refcoco.pth", folder / "pieces/last_refcoco.pth"


@pytest.mark.slow  # trains three times
def test_everything_resumes_exactly(runs: tuple[Path, Path]) -> None:
    assert differences(*runs) == []
    log = [json.loads(line) for line in runs[0].with_name("log_refcoco.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 2 * line["mask_loss"] > 0 and len(line["alignment_loss"]) == 4 for line in log)


@pytest.mark.slow  # rests on what was trained three times
@pytest.mark.parametrize(
    "flags",
    ["--mask-image 0.5", "--mask-text 0.3", "--encoder-lr-scale 0.2", "--dice-weight 1", "--align-prior 0.1"],
)
def test_another_recipe_does_not_continue_it(
    runs: tuple[Path, Path], few_root: Path, tmp_path: Path, flags: str
) -> None:
    name = flags.split()[0].strip("-").replace("-", "_")
    line = [*EVERYTHING.split(), *FEW, "--resume", runs[0], *flags.split()]
    with pytest.raises(UserError, match=rf"\b{name} was \S+ and is now {flags.split()[1]}"):
        train.main(training_flags(few_root, tmp_path, *line))


@pytest.mark.slow  # rests on what was trained three times
def test_its_weights_are_tested_and_predict(runs: tuple[Path, Path], few_root: Path, tmp_path: Path) -> None:
    """With the learned temperature and bias of the alignment in them; the test scores as the validation did."""
    weights, vocabulary = runs[0].with_name("best_refcoco.pth"), few_root / "vocab.txt"
    common = f"--resume {weights} --img_size 32 --device cpu --bert_tokenizer {vocabulary}"
    data = f"--dataset refcoco --refer_data_root {few_root} --split val -j 0 --limit 2 --json {tmp_path}/val.json"
    test.main(f"{common} {data}".split())
    epoch = json.loads(runs[0].with_name("log_refcoco.jsonl").read_text().splitlines()[-1])
    tested = json.loads((tmp_path / "val.json").read_text())
    assert (tested["n_expressions"], tested["mean_iou"]) == (2, epoch["val"]["mean_iou"])

    photo = next((few_root / "images").rglob("*.jpg"))
    predict.main([*common.split(), "--image", str(photo), "--text", "the red one", "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out/alignment").iterdir())) == 1
