"""`--dry-run` of training and testing: everything that is missing, at once, before hours of work. Writes nothing.

A check returns a line about what it found, or raises UserError: what is missing, where to get it, where it belongs.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bert.tokenizer import find_vocabulary
from errors import UserError, plain, user_message
from refer.missing import Present, check_own_data, check_present
from refer.splits import data_sets, in_split, splits_of, title_of
from utils import garbage_uncollected

Check = Callable[[], str]

GB = 1e9
MOMENTS = 2  # of AdamW, for each trained parameter; one more with AMSGrad


def run_checks(checks: Mapping[str, Check]) -> None:
    """Run all checks and print what they found. Raises UserError with all that is missing."""
    problems = []
    for name, check in checks.items():
        try:
            print(plain(f"{name}: {check()}"), flush=True)
        except UserError as error:
            problems.append(f"{name}: {user_message(error)}".replace("\n", "\n    "))
    if problems:
        raise UserError("\n  ".join([f"missing, or not usable ({len(problems)}):", *problems]))
    print("nothing is missing")


def data_checks(args: argparse.Namespace, splits: Sequence[str], present: list[Present]) -> dict[str, Check]:
    """Return the checks of some splits of the data that the flags name, one for each data set.

    Of several data sets, each is asked only for those of the splits that it has. A cache holds the images of all
    splits, so with `--cache` all must be there. present: receives what each check finds.
    """

    def note(found: Present) -> str:
        present.append(found)
        return found.text

    def check(dataset: str, split_by: str) -> str:
        names = splits_of(dataset, split_by)
        own = [split for split in splits if any(in_split(name, split) for name in names)]
        with garbage_uncollected():
            place = Path(args.refer_data_root), dataset, split_by
            return note(check_present(*place, own, args.overlap, every_image=args.cache is not None))

    pairs = data_sets(args.dataset, args.splitBy, args.data_files)
    checks: dict[str, Check] = {f"{name} ({by})": partial(check, name, by) for name, by in pairs}
    own = title_of(args.dataset, args.splitBy, args.name)
    return checks or {own: lambda: note(check_own_data(args.data_files, splits))}


def vocabulary_check(name: str) -> dict[str, Check]:
    """Return the check of a vocabulary."""
    return {"vocabulary": lambda: str(find_vocabulary(name, offline=True))}


def found(path: Path | None) -> str:
    """Return a line about a file of weights; None: none is wanted."""
    return "none: from scratch" if path is None else f"{path} ({path.stat().st_size / GB:.2f} GB)"


def state_bytes(network: nn.Module, *, amsgrad: bool) -> int:
    """Return the size of a training state in bytes: all weights, and the moments of those that are trained."""
    moments = MOMENTS + amsgrad
    trained: int = sum(value.numel() for value in network.parameters() if value.requires_grad)
    every: int = sum(value.numel() for value in network.state_dict().values())
    return 4 * (every + moments * trained)


def cache_bytes(file: str | None, img_size: int, present: Sequence[Present]) -> dict[Path, int]:
    """Return the bytes that building a cache takes, by its file; {} if there is no data set, or nothing to build.

    present: the data sets. Of several that are mixed, images may be left out, so this is the most it takes.
    """
    if not file or Path(file).exists() or not present:
        return {}
    from data.cache import Layout  # imports HDF5, which is needed only with `--cache`

    n_images, n_masks = (sum(counts) for counts in zip(*(one[1:] for one in present), strict=True))
    return {Path(file): Layout("", img_size, n_images, n_masks, "").n_reserved}


def check_space(needs: Mapping[Path, float]) -> str:
    """Return how much space is needed and free; needs: bytes by folder or file, which need not exist.

    Raises UserError if a file system has less than its folders need together, or if a folder is not writable.
    """
    lines: list[str] = []
    problems: list[str] = []
    by_device: dict[int, list[Path]] = {}
    for folder in needs:
        by_device.setdefault(existing(folder).stat().st_dev, []).append(folder)
    for folders in by_device.values():
        needed, free = sum(needs[folder] for folder in folders), shutil.disk_usage(existing(folders[0])).free
        names = " and ".join(map(str, folders))
        line = f"{needed / GB:.1f} GB needed in {names}, {free / GB:.1f} GB free"
        (problems if needed > free else lines).append(line)
    problems += [f"{folder} is not writable" for folder in needs if not os.access(existing(folder), os.W_OK)]
    if problems:
        raise UserError("; ".join([*problems, "make room, or name another folder"]))
    return "; ".join(lines) or "unknown until the data are there"


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.exists())


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network whose weights have sizes, but no numbers."""
    with torch.device("meta"):
        return build()
