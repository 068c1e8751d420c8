"""Train, be interrupted in many ways, go on, and compare; run by test_resume.py, under a launcher or alone.

    resume_worker.py DATA_ROOT FOLDER all|few|one [more flags of train.py]

Six steps in two epochs. The whole run and every interrupted one are trained in one process after the other, and
differences are written to FOLDER/differences.json by the name of the interruption.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import train
import utils
from lib import engine
from tests.training_runs import differences, training_flags

STEPS = 6
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


def interruptions(choice: str) -> dict[str, tuple[str, int, Callable[[], None]]]:
    """Return what to interrupt, by name: a function of the engine, after how many calls, and how."""
    stops, crashes = {
        "all": (range(1, STEPS + 1), (5,)),
        "few": ((3,), (5,)),
        "one": ((1,), ()),
    }[choice]
    found = {f"stop after step {step}": ("train_step", step, send_signal) for step in stops}
    found |= {f"crash after step {step}": ("train_step", step, crash) for step in crashes}
    return found | ({"stop in validation": ("predict", 1, send_signal)} if choice == "all" else {})


def main() -> None:
    root, folder, choice, more = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    common = [*more, "--epochs", 2, "--save-every", 2, "--workers", 0]
    train.main(training_flags(root, folder / "whole", *common))
    found = {}
    for name, (function, calls, act) in interruptions(choice).items():
        flags = training_flags(root, folder / name, *common, "--resume", "auto")
        with after(function, calls, act), suppress(Crash):
            train.main(flags)
        train.main(flags)
        if utils.is_main():
            pairs = [(folder / "whole" / file, folder / name / file) for file in (LAST, BEST)]
            found[name] = [found for pair in pairs for found in differences(*pair)]
            shutil.rmtree(folder / name)
    if utils.is_main():
        (folder / "differences.json").write_text(json.dumps(found))


if __name__ == "__main__":
    utils.run(main)
