"""Run a script in this process and measure the time of its parts, without the start of Python.

    python -m benchmarks.profile_main seconds.json test --resume checkpoints/best_refcoco.pth --split testA

The file receives the seconds of `main`, the script after its imports; of `evaluate`, the loop over a split, if there is
one; and of `waiting`, the part of that loop that waits for data.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import utils
from lib.contracts import Batch, Batches
from lib.files import write_text


class Stopwatch:
    """Measures the total time of all calls of a function in seconds."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - start


class WatchedLoader:
    """Measures the time spent waiting for the batches of a loader."""

    def __init__(self, loader: Batches, waiting: Stopwatch) -> None:
        self.loader, self.waiting = loader, waiting

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = self.waiting(iter, self.loader)
        while (batch := self.waiting(next, batches, None)) is not None:
            yield batch


def run(name: str, flags: Sequence[str]) -> dict[str, float]:
    """Run a script and return the time of its parts in seconds; raises the script's exceptions."""
    module = importlib.import_module(name)
    waiting = Stopwatch(lambda function, *arguments: function(*arguments))

    def evaluate(model: Any, loader: Batches, *arguments: Any, **named: Any) -> Any:
        return original(model, WatchedLoader(loader, waiting), *arguments, **named)

    original, evaluation, whole = module.evaluate, Stopwatch(evaluate), Stopwatch(module.main)
    with patch.object(module, "evaluate", evaluation):
        whole(flags)
    return {"main": whole.seconds, "evaluate": evaluation.seconds, "waiting": waiting.seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named script."""
    file, name, *flags = sys.argv[1:] if arguments is None else arguments

    def measure() -> None:
        write_text(file, json.dumps(run(name, flags)))

    utils.run(measure)


if __name__ == "__main__":
    main()
