"""Parsing of command-line flags: help texts, refused values, numbers with bounds.

Imports nothing slow: flags are checked before PyTorch is imported.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from itertools import pairwise
from typing import Any

from lib.variants import MOST_TOKENS


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the script's manual as it is written, and every default that tells the reader something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # The name of a switch already tells what it changes.
        says_nothing = action.nargs == 0 or action.default in (None, "", False, [])
        return action.help if says_nothing else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that shows manuals as they are written, accepts no abbreviated flags, and refuses empty values."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        """Take what `argparse.ArgumentParser` takes."""
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(prog, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but exit with an error if a value is empty, as from an unset shell variable."""
        given = sys.argv[1:] if args is None else list(args)
        for before, one in pairwise(["", *given]):
            name, is_flag, value = one.partition("=") if one.startswith("--") else (before, "", one)
            if (is_flag or not one.startswith("--")) and not value.strip():
                self.error(f"{name or 'the first argument'} is empty: is a shell variable not set?")
        return super().parse_known_args(given, namespace)


# The default is None: `utils.find_device` then chooses by what this machine has.
DEVICE_HELP = "cpu, cuda or cuda:NUMBER; default: cuda if there is one"


def device_name(text: str) -> str:
    """Parse PyTorch's name of a device: "cpu", "cuda" or "cuda:NUMBER"."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, or a GPU's number as in cuda:1, got {text:.40}")
    return text


MAX_INT = 2**63 - 1  # limit of PyTorch, NumPy and the files
MAX_WORKERS = 1024
MAX_SECONDS = 86_400  # longest socket timeout
MAX_IMAGE_SIDE = 4096  # pixels
LONGEST_NAME = 64  # characters of a name of data


def positive_int(text: str) -> int:
    """Parse an integer from 1 to MAX_INT."""
    return _between(1, MAX_INT, text)


def non_negative_int(text: str) -> int:
    """Parse an integer from 0 to MAX_INT."""
    return _between(0, MAX_INT, text)


def worker_count(text: str) -> int:
    """Parse a number of processes or threads, 0 to MAX_WORKERS."""
    return _between(0, MAX_WORKERS, text)


def token_count(text: str) -> int:
    """Parse a number of tokens, 3 (of a word, [CLS] and [SEP]) to MOST_TOKENS."""
    return _between(3, MOST_TOKENS, text)


def data_name(text: str) -> str:
    """Parse the name of a user's own data, which becomes part of file names."""
    if not is_data_name(text):
        odd = re.search(r"[^A-Za-z0-9_+-]", text)
        wrong = f"it has {len(text)} characters" if len(text) > LONGEST_NAME else f"it begins with {text[:1]!r}"
        raise argparse.ArgumentTypeError(
            f"{text[:LONGEST_NAME]!r} cannot be part of a file's name: {f'it holds {odd[0]!r}' if odd else wrong}. "
            f"Take up to {LONGEST_NAME} letters (a to z), digits, _, + and -; a letter or digit comes first"
        )
    return text


def is_data_name(text: object) -> bool:
    """Tell whether a text may name a user's own data. No dot: last_NAME.1.pth is an older state of last_NAME.pth."""
    pattern = rf"[A-Za-z0-9][A-Za-z0-9_+-]{{0,{LONGEST_NAME - 1}}}"
    return isinstance(text, str) and re.fullmatch(pattern, text) is not None


def image_side(text: str) -> int:
    """Parse the side of square images, 1 to MAX_IMAGE_SIDE pixels."""
    return _between(1, MAX_IMAGE_SIDE, text)


def _between(least: int, most: int, text: str) -> int:
    value = int(text)
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text:.40}")
    return value


def seconds(text: str) -> float:
    """Parse a time in seconds above 0, up to MAX_SECONDS."""
    value = positive_float(text)
    if value > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_SECONDS} seconds, got {text:.40}")
    return value


def finite_float(text: str) -> float:
    """Parse a finite number of either sign."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text:.40}")
    return value


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0, got {text:.40}")
    return value


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    value = non_negative_float(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected a number above 0, got 0")
    return value


def open_share(text: str) -> float:
    """Parse a number in (0, 1)."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text:.40}")
    return value


def probability(text: str) -> float:
    """Parse a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text:.40}")
    return value
