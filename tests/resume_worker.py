"""Train with repeated interruptions, resume, and compare; run by test_resume.py, in one or more processes.

    resume_worker.py DATA_ROOT FOLDER all|few|one [more flags of train.py]

Two epochs, of three steps unless there are fewer samples: once whole and once in pieces. Each piece resumes where the
one before ended, so anything lost in an interruption is missing at the end. Differences are written to
FOLDER/differences.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch

import train
import utils
from lib import engine
from tests.training_runs import differences, training_flags

LAST, BEST = "last_refcoco.pth", "best_refcoco.pth"


class Crash(Exception):
    """Ends a training as a kill would, with nothing saved."""


@contextmanager
def after(name: str, calls: int, act: Callable[[], None]) -> Iterator[None]:
    """Let `act` happen once, after a function of the engine was called that many times."""
    original, count = getattr(engine, name), 0

    def counting(*arguments: object, **keywords: object) -> object:
        nonlocal count
        result = original(*arguments, **keywords)
        count += 1
        if count == calls:
            act()
        return result

    setattr(engine, name, counting)
    try:
        yield
    finally:
        setattr(engine, name, original)


def send_signal() -> None:
    """Ask one process alone to stop: all must."""
    if utils.rank() == utils.world_size() - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def crash() -> None:
    raise Crash


class Interruption(NamedTuple):
    """How a piece of a run ends: after that many calls of a function of the engine, counted from the piece's start."""

    function: str
    calls: int
    act: Callable[[], None]
    left: tuple[int, int]  # epoch and step of the state that it leaves


def interruptions(choice: str) -> list[Interruption]:
    """Return what interrupts a run, in turn; states are saved at stops, after every second step and every epoch."""
    if choice == "few":
        return [Interruption("train_step", 3, send_signal, (0, 3)), Interruption("train_step", 2, crash, (1, 1))]
    first = Interruption("train_step", 1, send_signal, (0, 1))
    if choice == "one":
        return [first]
    return [
        first,
        Interruption("train_step", 2, crash, (0, 2)),
        Interruption("train_step", 1, send_signal, (0, 3)),
        Interruption("run_inference", 1, send_signal, (0, 3)),  # in the validation
        Interruption("train_step", 1, crash, (1, 0)),
        *[Interruption("train_step", 1, send_signal, (1, step)) for step in (1, 2, 3)],
    ]


def main() -> None:
    root, folder, choice, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    common = [*more, "--epochs", 2, "--save-every", 2, "--workers", 0]
    train.main(training_flags(root, folder / "whole", *common))
    pieces = folder / choice
    train_in_pieces(choice, pieces, training_flags(root, pieces, *common, "--resume", "auto"))
    if utils.is_main():
        found = [name for file in (LAST, BEST) for name in differences(folder / "whole" / file, pieces / file)]
        (folder / "differences.json").write_text(json.dumps(found))


def train_in_pieces(choice: str, folder: Path, flags: list[str]) -> None:
    """Train to the end, with the interruptions of a choice; check what state each of them leaves in the folder."""
    for function, calls, act, left in interruptions(choice):
        with after(function, calls, act), suppress(Crash):
            train.main(flags)
        if utils.is_main():
            saved = torch.load(folder / LAST, weights_only=True)
            assert (saved["epoch"], saved["step"]) == left
    train.main(flags)


if __name__ == "__main__":
    utils.run(main)
