"""The flags of `train.py` and `test.py` in one table: names, defaults, and what each means for a training.

A new flag is a line here and its use; see CONTRIBUTING.md. Imports nothing that takes time: flags are checked before
PyTorch is there. Names and defaults are those of the released code where it has the flag.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from enum import Flag, auto
from typing import Any, NamedTuple

from errors import UserError
from lib.arguments import (
    DEVICE_HELP,
    Parser,
    device_name,
    image_side,
    natural,
    positive_int,
    positive_rate,
    rate,
    share,
    worker_count,
)
from lib.variants import BERT_VARIANTS, FUSIONS, IMG_SIZE, LOSSES, PRECISIONS, SWIN_VARIANTS

LARGE_WINDOW_TYPES = [name for name, variant in SWIN_VARIANTS.items() if variant.window_size == 12]
OVERLAPS = ("background", "object")


class Role(Flag):
    """What an option means for a training and its files."""

    NONE = 0
    RECIPE = auto()  # how a network was trained: stands in its model card and in exported weights
    FIXED = auto()  # a training that continues must have the same value
    KEPT = auto()  # no recipe, but stands in exported weights


RECIPE, FIXED, KEPT = Role.RECIPE, Role.FIXED, Role.KEPT
UNKNOWN = object()  # says that every state has the option


class Option(NamedTuple):
    """A flag, or a number that follows from flags and data."""

    name: str  # among the parsed flags and in a training state
    role: Role
    former: Any = UNKNOWN  # the value of states that were written before there was the option
    names: tuple[str, ...] = ()  # of the flag
    words: dict[str, Any] = {}  # for `argparse.add_argument`  # noqa: RUF012 (nobody changes it)


def flag(names: str, default: Any, text: str, role: Role = Role.NONE, *, former: Any = UNKNOWN, **words: Any) -> Option:
    """Return an option with its flag. names: apart by spaces; text: of --help; words: more for `add_argument`."""
    every = tuple(names.split())
    longest = next(name for name in every if name.startswith("--"))
    name: str = words.get("dest", longest.removeprefix("--").replace("-", "_"))
    return Option(name, role, former, every, {"default": default, "help": text, **words})


DATA = (
    flag("--dataset", "refcoco", "refcoco, refcoco+, refcocog, refclef, several (a,b), or jsonl", RECIPE | FIXED),
    flag(
        "--splitBy", "unc", "unc (refcoco, refcoco+, refclef), umd or google (refcocog); one for each", RECIPE | FIXED
    ),
    flag("--data", None, "of --dataset jsonl, see docs/data.md", dest="data_files", nargs="+", metavar="FILE"),
    flag("--split", "val", "split to test or validate on: val, test, testA or testB", FIXED | KEPT),
    flag("--refer_data_root", "./refer/data/", "folder of annotations and images, see docs/data.md"),
    flag(
        "--overlap",
        "background",
        "what pixels are where an object's polygons overlap",
        RECIPE | FIXED,
        former="background",
        choices=OVERLAPS,
    ),
    flag("--img_size", IMG_SIZE, "images are resized to this height and width", RECIPE | FIXED, type=image_side),
    flag(
        "--cache", None, "resized images and masks of the data set; built if there is no such file", metavar="FILE.h5"
    ),
    flag("--bert_tokenizer", "bert-base-uncased", "vocab.txt, tokenizer.json, folder or hub name", KEPT),
)
NETWORK = (
    flag("--swin_type", "base", "size of the vision encoder", FIXED | KEPT, choices=SWIN_VARIANTS),
    flag("--bert_type", "base", "size of the language encoder", FIXED | KEPT, choices=BERT_VARIANTS),
    flag(
        "--fusion", "cross", "who looks at whom; cross is the paper's", RECIPE | FIXED, former="cross", choices=FUSIONS
    ),
    flag(
        "--no-alignment",
        True,
        "compare no pixels with sentences",
        RECIPE | FIXED,
        former=True,
        dest="alignment",
        action="store_false",
    ),
    flag("--window12", False, "accepted for base and large, which always use windows of 12", action="store_true"),
    flag(
        "--pretrained_swin_weights",
        None,
        "file, hub name (timm/…) or none; default: the official file of --swin_type in ./pretrained",
    ),
    flag("--ck_bert", None, "file, folder, hub name or none; default: bert-base-uncased, none for --bert_type nano"),
)
TRAINING = (
    flag("--epochs", 40, "passes over all objects", RECIPE | FIXED, type=positive_int),
    flag("--lr", 0.00003, "initial learning rate", RECIPE | FIXED, type=rate),
    flag("--wd --weight-decay", 0.01, "AdamW's weight decay", RECIPE | FIXED, type=rate, dest="weight_decay"),
    flag("--amsgrad", False, "AdamW's AMSGrad variant", RECIPE | FIXED, action="store_true"),
    flag("--output-dir", "./checkpoints/", "where checkpoints and the log go"),
)
RUN = (
    flag("--resume", "", "weights or training file to test; training file to continue, or auto"),
    flag("--device", None, DEVICE_HELP, type=device_name),
    flag("-b --batch-size", 6, "samples per process and step", KEPT, type=positive_int),
    flag("-j --workers", 2, "data-loading processes per process", type=worker_count),
    flag("--pin_mem", False, "accepted; memory is pinned where there is a GPU", action="store_true"),
    flag("--precision", "fp32", "of the network's arithmetic", RECIPE | FIXED, choices=PRECISIONS),
    flag("--compile", False, "with torch.compile: minutes at the start, faster steps after them", action="store_true"),
    flag("--print-freq", 10, "steps between two lines of progress", type=positive_int),
    flag("--seed", 12345, "of initialisation, order and dropout", RECIPE | FIXED, type=natural),
    flag("--model_id", "model", "a name for this run, kept in its log", KEPT),
    # Launchers pass the process's number this way too; the environment variables beside it are what is read.
    flag("--local_rank --local-rank", 0, "set by the launcher", type=int),
    flag("--ddp_trained_weights", False, "accepted; the `module.` prefix is recognised by itself", action="store_true"),
)
IN_TRAINING = (
    flag("--dropout", 0.1, "of the language stages", RECIPE | FIXED, type=share),
    flag("--drop_path", 0.3, "of the last Swin block, rising linearly from 0", RECIPE | FIXED, type=share),
    flag("--loss", "ce", "of the mask; ce is the recipe's weighted cross-entropy", RECIPE | FIXED, choices=LOSSES),
    flag("--freeze-bert", False, "leave BERT's layers at their starting values", RECIPE | FIXED, action="store_true"),
    flag(
        "--train-embeddings", False, "train BERT's embeddings, too", RECIPE | FIXED, former=False, action="store_true"
    ),
    flag("--train-temperature", False, "train the temperatures of alignment, too", RECIPE | FIXED, action="store_true"),
)
STEPS = (
    flag("--accumulate", 1, "batches per process that make one step", KEPT, type=positive_int, metavar="N"),
    flag(
        "--clip-grad",
        None,
        "largest L2 norm of the gradients; default: any",
        RECIPE | FIXED,
        type=positive_rate,
        metavar="NORM",
    ),
    flag("--checkpointing", False, "compute activations again in the backward pass: less memory", action="store_true"),
    flag("--limit-train", None, "train on the first N objects only", RECIPE | FIXED, type=positive_int, metavar="N"),
    flag("--limit-val", None, "validate on the first N sentences only", RECIPE | FIXED, type=positive_int, metavar="N"),
)
FILES = (
    flag("--eval-every", 1, "validate every N epochs, and after the last", type=positive_int, metavar="N"),
    flag("--save-every", 0, "save every N steps, too; 0: at epochs' ends only", type=natural, metavar="N"),
    flag("--keep", 2, "newest states to keep; best is kept in any case", type=positive_int, metavar="K"),
    flag("--overwrite", False, "replace the checkpoints of an earlier run in --output-dir", action="store_true"),
)
# What follows from flags, data and processes.
DERIVED = (
    Option("global_batch", RECIPE | FIXED),  # samples of a step
    Option("steps", FIXED | KEPT),  # of the whole training
    Option("data", RECIPE | FIXED),  # fingerprints of what is trained and validated on
)

# By the title that --help gives them.
SHARED = {"": (*DATA, *NETWORK, *RUN), "training (accepted and ignored by test.py)": TRAINING}
OF_TRAINING = {"network in training": IN_TRAINING, "steps and memory": STEPS, "files": FILES}


def _all() -> Iterator[Option]:
    for group in (*SHARED.values(), *OF_TRAINING.values()):
        yield from group
    yield from DERIVED


# Names of options, as the parsed flags and a training state have them.
RECIPE_NAMES = tuple(option.name for option in _all() if RECIPE in option.role)
FIXED_NAMES = tuple(option.name for option in _all() if FIXED in option.role)
KEPT_NAMES = tuple(option.name for option in _all() if (RECIPE | KEPT) & option.role)
FORMER = {option.name: option.former for option in _all() if option.former is not UNKNOWN}


def build_parser(description: str, *, training: bool) -> Parser:
    """Return the parser of the shared flags, and of those of a training alone; a script adds its own."""
    parser = Parser(description=description)
    for title, options in (SHARED | OF_TRAINING if training else SHARED).items():
        group = parser.add_argument_group(title) if title else parser
        for option in options:
            group.add_argument(*option.names, **option.words)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.window12 and args.swin_type not in (None, *LARGE_WINDOW_TYPES):
        raise UserError(
            f"--window12: the windows of --swin_type {args.swin_type} measure 7; "
            f"only {' and '.join(LARGE_WINDOW_TYPES)} use 12"
        )
