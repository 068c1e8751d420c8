"""The table of flags: what it says of each is what parsers, states and model cards do."""

from __future__ import annotations

import pytest

import test as test_script
import train
from lib.options import DERIVED, FIXED_NAMES, FORMER, KEPT_NAMES, OF_TRAINING, RECIPE_NAMES, SHARED, Option
from lib.weights.card import describe_recipe

FLAGS = [option for group in (*SHARED.values(), *OF_TRAINING.values()) for option in group]
# Flags about folders, machine and logging of a training; none of them changes the trained network.
WITHOUT_ROLE = [
    "data_files",
    "refer_data_root",
    "cache",
    "window12",
    "pretrained_swin_weights",
    "ck_bert",
    "output_dir",
    "resume",
    "device",
    "dry_run",
    "workers",
    "pin_mem",
    "compile",
    "print_freq",
    "local_rank",
    "ddp_trained_weights",
    "checkpointing",
    "eval_every",
    "save_every",
    "keep",
    "overwrite",
]


def test_every_flag_of_a_training_is_in_the_table() -> None:
    of_data = {"splitBy": "unc", "overlap": "background", "max_tokens": 21}  # the defaults of RefCOCO
    assert vars(train.parse_args([])) == {option.name: option.keywords["default"] for option in FLAGS} | of_data


def test_a_test_takes_the_shared_flags() -> None:
    names = vars(test_script.parse_args(["--resume", "weights.pth"])).keys()
    assert {option.name for group in SHARED.values() for option in group} <= names
    assert not {option.name for group in OF_TRAINING.values() for option in group} & names


@pytest.mark.parametrize("option", [*FLAGS, *DERIVED], ids=lambda option: option.name)
def test_flags_without_a_role_are_listed(option: Option) -> None:
    """A new flag is thought about: what changes a training is fixed, what was chosen for it is its recipe."""
    assert bool(option.role) == (option.name not in WITHOUT_ROLE)


def test_a_model_card_holds_the_whole_recipe() -> None:
    options = {name: f"value of {name}" for name in RECIPE_NAMES}
    assert describe_recipe(options | {"workers": 8}).splitlines() == [f"- {name}: value of {name}" for name in options]
    assert {"amsgrad", "limit_train", "limit_val", "clip_grad"} <= set(RECIPE_NAMES)


def test_the_recipe_is_fixed_and_kept() -> None:
    assert set(RECIPE_NAMES) <= set(FIXED_NAMES)
    assert set(RECIPE_NAMES) <= set(KEPT_NAMES)
    assert set(FORMER) <= set(FIXED_NAMES)
