"""The flags of `train.py` and `test.py` in one table: names, defaults, and what each means for a training.

To add a flag, add a line here and use it; see CONTRIBUTING.md. Imports nothing slow: flags are checked before PyTorch
is imported. Flags of the released code keep their names and defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from enum import Flag, auto
from types import MappingProxyType
from typing import Any, NamedTuple

from errors import UserError
from lib.arguments import (
    DEVICE_HELP,
    Parser,
    data_name,
    device_name,
    image_side,
    non_negative_float,
    non_negative_int,
    open_share,
    positive_float,
    positive_int,
    probability,
    token_count,
    worker_count,
)
from lib.recipes import RECIPES
from lib.variants import (
    ALIGN_LOSSES,
    BERT_VARIANTS,
    FUSIONS,
    IMG_SIZE,
    LOSSES,
    MASK_PATCH,
    MAX_TOKENS,
    NO_TARGET_WEIGHT,
    PRECISIONS,
    SWIN_VARIANTS,
)

LARGE_WINDOW_TYPES = [name for name, variant in SWIN_VARIANTS.items() if variant.window_size == 12]
OVERLAPS = ("background", "object")


class Role(Flag):
    """What an option means for a training and its files."""

    NONE = 0
    RECIPE = auto()  # part of how a network was trained: written to its model card and exported weights
    FIXED = auto()  # a resumed training must have the same value
    KEPT = auto()  # not part of the recipe, but written to exported weights


RECIPE, FIXED, KEPT = Role.RECIPE, Role.FIXED, Role.KEPT
UNKNOWN = object()  # the value of `former` for options that every state has


class Option(NamedTuple):
    """A flag, or a value derived from flags and data."""

    name: str  # attribute of the parsed flags, and key in a training state
    role: Role
    former: Any = UNKNOWN  # the value to assume for states written before this option existed
    names: tuple[str, ...] = ()  # all spellings of the flag
    keywords: dict[str, Any] = {}  # for `argparse.add_argument`  # noqa: RUF012 (nobody changes it)


def flag(
    names: str, default: Any, text: str, role: Role = Role.NONE, *, former: Any = UNKNOWN, **keywords: Any
) -> Option:
    """Return an option with its flag.

    names: its spellings, separated by spaces. text: shown by --help. keywords: more arguments of `add_argument`.
    """
    spellings = tuple(names.split())
    first_long = next(name for name in spellings if name.startswith("--"))
    name: str = keywords.get("dest", first_long.removeprefix("--").replace("-", "_"))
    return Option(name, role, former, spellings, {"default": default, "help": text, **keywords})


DATA = (
    flag("--dataset", "refcoco", "a data set of docs/data.md, several (a,b), or jsonl", RECIPE | FIXED),
    flag(
        "--splitBy",
        None,
        "how the data set is split, one per data set; default: umd for refcocog, unc for most others",
        RECIPE | FIXED,
    ),
    flag("--data", None, "files of --dataset jsonl, see docs/data.md", dest="data_files", nargs="+", metavar="FILE"),
    flag(
        "--name",
        None,
        "name of the data of --dataset jsonl, in files and tables; default: jsonl",
        RECIPE | FIXED,
        former=None,
        type=data_name,
    ),
    flag("--split", "val", "split to test or validate on: val, test, testA or testB", FIXED | KEPT),
    flag("--refer_data_root", "./refer/data/", "folder of annotations and images, see docs/data.md"),
    flag(
        "--overlap",
        None,
        "how to label pixels that two polygons of an object cover; default: as published, background for RefCOCO",
        RECIPE | FIXED,
        former="background",
        choices=OVERLAPS,
    ),
    flag(
        "--max-tokens",
        None,
        "tokens of a sentence that are read; default: as usual for the data set, 21 for most",
        RECIPE | FIXED,
        former=MAX_TOKENS,
        type=token_count,
        metavar="N",
    ),
    flag("--img_size", IMG_SIZE, "resize images to this height and width, in pixels", RECIPE | FIXED, type=image_side),
    flag("--cache", None, "file of resized images and masks; built if it does not exist", metavar="FILE.h5"),
    flag("--bert_tokenizer", "bert-base-uncased", "vocab.txt, tokenizer.json, folder or hub name", KEPT),
)
NETWORK = (
    flag("--swin_type", "base", "size of the vision encoder", FIXED | KEPT, choices=SWIN_VARIANTS),
    flag("--bert_type", "base", "size of the language encoder", FIXED | KEPT, choices=BERT_VARIANTS),
    flag("--fusion", "cross", "fusion variant; cross is the paper's", RECIPE | FIXED, former="cross", choices=FUSIONS),
    flag(
        "--no-alignment",
        True,
        "disable the alignment loss",
        RECIPE | FIXED,
        former=True,
        dest="alignment",
        action="store_false",
    ),
    flag("--window12", False, "no effect: base and large always use windows of 12", action="store_true"),
    flag(
        "--pretrained_swin_weights",
        None,
        "file, hub name (timm/…) or none; default: the official file of --swin_type in ./pretrained",
    ),
    flag("--ck_bert", None, "file, folder, hub name or none; default: bert-base-uncased, none for --bert_type nano"),
)
TRAINING = (
    flag("--epochs", 40, "passes over all objects", RECIPE | FIXED, type=positive_int),
    flag("--lr", 0.00003, "initial learning rate", RECIPE | FIXED, type=non_negative_float),
    flag(
        "--wd --weight-decay",
        0.01,
        "weight decay of AdamW",
        RECIPE | FIXED,
        type=non_negative_float,
        dest="weight_decay",
    ),
    flag("--amsgrad", False, "use the AMSGrad variant of AdamW", RECIPE | FIXED, action="store_true"),
    flag("--output-dir", "./checkpoints/", "folder of checkpoints and log"),
)
RUN = (
    flag("--resume", "", "test.py: weights or training state to test; train.py: training state to resume, or auto"),
    flag("--device", None, DEVICE_HELP, type=device_name),
    flag("--dry-run", False, "only list what is missing, with where to get it; writes nothing", action="store_true"),
    flag("-b --batch-size", 6, "samples per process and step", KEPT, type=positive_int),
    flag("-j --workers", 2, "data-loading workers per process", type=worker_count),
    flag("--pin_mem", False, "no effect: memory is pinned if there is a GPU", action="store_true"),
    flag(
        "--no-target-pixels",
        1,
        "gRefCOCO: a mask of fewer pixels is an answer of no target, if the network has no head for it",
        FIXED | KEPT,
        former=1,
        type=positive_int,
        metavar="N",
    ),
    flag("--precision", "fp32", "floating-point precision", RECIPE | FIXED, choices=PRECISIONS),
    flag("--compile", False, "use torch.compile: minutes to start, then faster steps", action="store_true"),
    flag("--print-freq", 10, "steps between two lines of progress", type=positive_int),
    flag("--seed", 12345, "seed of initialisation, order and dropout", RECIPE | FIXED, type=non_negative_int),
    flag("--model_id", "model", "name of this run in its log", KEPT),
    # Some launchers pass the local rank as a flag. It is ignored: the environment variables are read instead.
    flag("--local_rank --local-rank", 0, "set by the launcher", type=int),
    flag("--ddp_trained_weights", False, "no effect: the prefix `module.` is recognised", action="store_true"),
)
IN_TRAINING = (
    flag(
        "--init",
        None,
        "start from the weights in this file, folder or hub name, in any layout: what fits is loaded, the rest listed",
        RECIPE | FIXED,
        former=None,
        metavar="FILE",
    ),
    flag(
        "--recipe",
        "paper",
        "recipe of docs/recipes.md; flags that are given override its values",
        RECIPE | FIXED,
        former="paper",
        choices=RECIPES,
    ),
    flag("--dropout", 0.1, "dropout probability in the language stages", RECIPE | FIXED, type=probability),
    flag(
        "--drop_path",
        0.3,
        "drop-path probability of the last Swin block, rising linearly from 0",
        RECIPE | FIXED,
        type=probability,
    ),
    flag("--loss", "ce", "mask loss; ce is the paper's weighted cross-entropy", RECIPE | FIXED, choices=LOSSES),
    flag(
        "--dice-weight",
        None,
        "weight of dice in a sum with ce; default: 1",
        RECIPE | FIXED,
        former=None,
        type=positive_float,
        metavar="W",
    ),
    flag(
        "--mask-image",
        0.0,
        "MaskRIS: share of patches to remove from images for a second pass; published: 0.75",
        RECIPE | FIXED,
        former=0.0,
        type=probability,
        metavar="SHARE",
    ),
    flag(
        "--mask-text",
        0.0,
        "MaskRIS: probability of each word to be masked in a second pass; published: 0.15",
        RECIPE | FIXED,
        former=0.0,
        type=probability,
        metavar="P",
    ),
    flag(
        "--mask-patch",
        MASK_PATCH,
        "side of the patches of --mask-image, in pixels",
        RECIPE | FIXED,
        former=MASK_PATCH,
        type=positive_int,
        metavar="N",
    ),
    flag("--freeze-bert", False, "do not train BERT's layers", RECIPE | FIXED, action="store_true"),
    flag(
        "--train-embeddings",
        False,
        "also train BERT's embeddings",
        RECIPE | FIXED,
        former=False,
        action=argparse.BooleanOptionalAction,
    ),
    flag(
        "--align-temperature",
        1.0,
        "initial temperature of alignment; the paper's is 1",
        RECIPE | FIXED,
        former=1.0,
        type=positive_float,
        metavar="T",
    ),
    flag("--train-temperature", False, "also train the alignment temperatures", RECIPE | FIXED, action="store_true"),
    flag(
        "--align-prior",
        None,
        "add a trained bias to alignment, which starts at the logit of this share of pixels; default: no bias",
        RECIPE | FIXED,
        former=None,
        type=open_share,
        metavar="P",
    ),
    flag(
        "--align-loss",
        "bce",
        "alignment loss; bce is the paper's binary cross-entropy",
        RECIPE | FIXED,
        former="bce",
        choices=ALIGN_LOSSES,
    ),
    flag(
        "--no-target-head",
        False,
        "also predict whether the sentence means anything in the image",
        RECIPE | FIXED,
        former=False,
        action="store_true",
    ),
    flag(
        "--no-target-weight",
        None,
        f"weight of the head's loss; default: {NO_TARGET_WEIGHT}",
        RECIPE | FIXED,
        former=None,
        type=non_negative_float,
        metavar="W",
    ),
)
STEPS = (
    flag(
        "--encoder-lr-scale",
        1.0,
        "factor of the learning rate of Swin and BERT",
        RECIPE | FIXED,
        former=1.0,
        type=positive_float,
        metavar="S",
    ),
    flag(
        "--warmup",
        0,
        "first steps, in which the learning rate rises linearly",
        RECIPE | FIXED,
        former=0,
        type=non_negative_int,
        metavar="N",
    ),
    flag("--accumulate", 1, "batches per process and optimizer step", KEPT, type=positive_int, metavar="N"),
    flag(
        "--clip-grad",
        None,
        "clip the L2 norm of the gradients to this value; default: do not clip",
        RECIPE | FIXED,
        type=positive_float,
        metavar="NORM",
    ),
    flag("--checkpointing", False, "recompute activations in the backward pass: less memory", action="store_true"),
    flag(
        "--max-words",
        None,
        "train on sentences of at most N words only",
        RECIPE | FIXED,
        former=None,
        type=positive_int,
        metavar="N",
    ),
    flag("--limit-train", None, "train on the first N objects only", RECIPE | FIXED, type=positive_int, metavar="N"),
    flag("--limit-val", None, "validate on the first N sentences only", RECIPE | FIXED, type=positive_int, metavar="N"),
)
FILES = (
    flag("--eval-every", 1, "validate every N epochs, and after the last", type=positive_int, metavar="N"),
    flag("--save-every", 0, "also save every N steps; 0: only after each epoch", type=non_negative_int, metavar="N"),
    flag("--keep", 2, "number of newest states to keep; the best one is always kept", type=positive_int, metavar="K"),
    flag("--overwrite", False, "replace the checkpoints of an earlier run in --output-dir", action="store_true"),
)
# Values that follow from flags, data and processes.
DERIVED = (
    Option("global_batch", RECIPE | FIXED),  # samples per optimizer step
    Option("steps", FIXED | KEPT),  # of the whole training
    Option("data", RECIPE | FIXED),  # fingerprints of the training and validation data
)

# The groups, by their title in --help.
SHARED = {"": (*DATA, *NETWORK, *RUN), "training (accepted and ignored by test.py)": TRAINING}
OF_TRAINING = {"network in training": IN_TRAINING, "steps and memory": STEPS, "files": FILES}


def _all() -> Iterator[Option]:
    for group in (*SHARED.values(), *OF_TRAINING.values()):
        yield from group
    yield from DERIVED


# Names of options among the parsed flags and in a training state.
RECIPE_NAMES = tuple(option.name for option in _all() if RECIPE in option.role)
FIXED_NAMES = tuple(option.name for option in _all() if FIXED in option.role)
KEPT_NAMES = tuple(option.name for option in _all() if (RECIPE | KEPT) & option.role)
FORMER = {option.name: option.former for option in _all() if option.former is not UNKNOWN}


def build_parser(
    description: str, *, training: bool, changes: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Parser:
    """Return a parser of the shared flags; training: also of those that only `train.py` has. A script adds its own.

    changes: by name of an option, arguments of `add_argument` that differ from the table.
    """
    parser = Parser(description=description)
    for title, options in (SHARED | OF_TRAINING if training else SHARED).items():
        group = parser.add_argument_group(title) if title else parser
        for option in options:
            group.add_argument(*option.names, **{**option.keywords, **changes.get(option.name, {})})
    return parser


def add_flags(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add flags of the table to the parser of another script.

    names: one spelling of each. changes: arguments of `add_argument` that differ from the table, such as the help.
    """
    for name in names:
        option = next(option for option in _all() if name in option.names)
        parser.add_argument(*option.names, **option.keywords | changes)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.window12 and args.swin_type not in (None, *LARGE_WINDOW_TYPES):
        raise UserError(
            f"--window12: the windows of --swin_type {args.swin_type} measure 7; "
            f"only {' and '.join(LARGE_WINDOW_TYPES)} use 12"
        )
    if args.max_tokens and args.bert_type and args.max_tokens > (most := BERT_VARIANTS[args.bert_type].max_positions):
        raise UserError(f"--max-tokens {args.max_tokens}: --bert_type {args.bert_type} reads {most} tokens at most")
