"""The command line that `train.py` and `test.py` share: the released code's flags, with its defaults.

Imports nothing that takes time: flags are checked before PyTorch is there.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from itertools import pairwise
from typing import Any

from errors import UserError
from lib.variants import BERT_VARIANTS, FUSIONS, PRECISIONS, SWIN_VARIANTS

LARGE_WINDOW_TYPES = [name for name, variant in SWIN_VARIANTS.items() if variant.window_size == 12]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show the script's manual as it is written, and every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # A switch says itself what it changes.
        says_nothing = action.nargs == 0 or action.default in (None, "", False, [])
        return action.help if says_nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that shows manuals as they are written, takes no cut flags, and refuses empty values."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        """Take what `argparse.ArgumentParser` takes."""
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(prog, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; end with an error where a value is empty, as an unset shell variable leaves it."""
        given = sys.argv[1:] if args is None else list(args)
        for before, one in pairwise(["", *given]):
            name, is_flag, value = one.partition("=") if one.startswith("--") else (before, "", one)
            if (is_flag or not one.startswith("--")) and not value.strip():
                self.error(f"{name or 'the first argument'} is empty: is a shell variable not set?")
        return super().parse_known_args(given, namespace)


def build_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of the shared flags, those of training among them; each script adds its own."""
    parser = Parser(description=description)
    add = parser.add_argument
    _add_data(parser)
    _add_network(parser)
    _add_recipe(parser)
    add("--resume", default="", help="weights or training file to test; training file to continue, or auto")
    add_device(parser)
    add("-b", "--batch-size", type=positive_int, default=6, help="samples per process and step")
    add("-j", "--workers", type=worker_count, default=2, help="data-loading processes per process")
    add("--pin_mem", action="store_true", help="accepted; memory is pinned where there is a GPU")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the network's arithmetic")
    add("--compile", action="store_true", help="with torch.compile: minutes at the start, faster steps after them")
    add("--print-freq", type=positive_int, default=10, help="steps between two lines of progress")
    add("--seed", type=natural, default=12345, help="of initialisation, order and dropout")
    add("--model_id", default="model", help="a name for this run, kept in its log")
    # Launchers pass the process's number this way too; the environment variables beside it are what is read.
    add("--local_rank", "--local-rank", type=int, default=0, help="set by the launcher")
    add("--ddp_trained_weights", action="store_true", help="accepted; the `module.` prefix is recognised by itself")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="refcoco", help="refcoco, refcoco+, refcocog, refclef, several (a,b), or jsonl")
    add("--splitBy", default="unc", help="unc (refcoco, refcoco+, refclef), umd or google (refcocog); one for each")
    add("--data", dest="data_files", nargs="+", metavar="FILE", help="of --dataset jsonl, see refer/README.md")
    add("--split", default="val", help="split to test or validate on: val, test, testA or testB")
    add("--refer_data_root", default="./refer/data/", help="folder of annotations and images, see refer/README.md")
    overlaps = ("background", "object")
    add("--overlap", choices=overlaps, default="background", help="what pixels are where an object's polygons overlap")
    add("--img_size", type=positive_int, default=480, help="images are resized to this height and width")
    add("--cache", metavar="FILE.h5", help="resized images and masks of the data set; built if there is no such file")
    add("--bert_tokenizer", default="bert-base-uncased", help="vocab.txt, tokenizer.json, folder or hub name")


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--swin_type", choices=SWIN_VARIANTS, default="base", help="size of the vision encoder")
    add("--bert_type", choices=BERT_VARIANTS, default="base", help="size of the language encoder")
    add("--fusion", choices=FUSIONS, default="cross", help="who looks at whom; cross is the paper's")
    add("--no-alignment", dest="alignment", action="store_false", default=True, help="compare no pixels with sentences")
    add("--window12", action="store_true", help="accepted for base and large, which always use windows of 12")
    add(
        "--pretrained_swin_weights",
        help="file, hub name (timm/…) or none; default: the official file of --swin_type in ./pretrained",
    )
    add("--ck_bert", help="file, folder, hub name or none; default: bert-base-uncased, none for --bert_type nano")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training (accepted and ignored by test.py)").add_argument
    add("--epochs", type=positive_int, default=40, help="passes over all objects")
    add("--lr", type=rate, default=0.00003, help="initial learning rate")
    add("--wd", "--weight-decay", dest="weight_decay", type=rate, default=0.01, help="AdamW's weight decay")
    add("--amsgrad", action="store_true", help="AdamW's AMSGrad variant")
    add("--output-dir", default="./checkpoints/", help="where checkpoints and the log go")


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict each other."""
    if args.window12 and args.swin_type not in (None, *LARGE_WINDOW_TYPES):
        raise UserError(
            f"--window12: the windows of --swin_type {args.swin_type} measure 7; "
            f"only {' and '.join(LARGE_WINDOW_TYPES)} use 12"
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, None unless given; `utils.find_device` finds out what this machine has."""
    parser.add_argument("--device", type=device_name, help="cpu, cuda or cuda:NUMBER; default: cuda if there is one")


def device_name(text: str) -> str:
    """Parse a device as PyTorch names it."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, or a GPU's number as in cuda:1, got {text:.40}")
    return text


MOST = 2**63 - 1  # what PyTorch, NumPy and the files take
MOST_WORKERS = 1024
MOST_SECONDS = 86_400  # what a socket waits for


def positive_int(text: str) -> int:
    """Parse an integer from 1 to MOST."""
    return _between(1, MOST, text)


def natural(text: str) -> int:
    """Parse an integer from 0 to MOST."""
    return _between(0, MOST, text)


def worker_count(text: str) -> int:
    """Parse a number of processes or threads, 0 to MOST_WORKERS."""
    return _between(0, MOST_WORKERS, text)


def _between(least: int, most: int, text: str) -> int:
    value = int(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text:.40}")
    return value


def seconds(text: str) -> float:
    """Parse a time above 0, up to MOST_SECONDS."""
    value = positive_rate(text)
    if value > MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_SECONDS} seconds, got {text:.40}")
    return value


def rate(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text:.40}")
    return value


def positive_rate(text: str) -> float:
    """Parse a finite number above 0."""
    value = rate(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected a number above 0, got 0")
    return value


def share(text: str) -> float:
    """Parse a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text:.40}")
    return value
