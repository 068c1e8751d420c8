"""Run a script's command in this process and say how long its parts took, without the start of Python.

    python -m benchmarks.timed seconds.json test --resume checkpoints/best_refcoco.pth --split testA

The file receives the seconds of `main`, all that the script does once its modules are imported, and of `evaluate`, the
loop over a split inside it, where there is one.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import utils


class Stopwatch:
    """A function, and the seconds of all its calls together."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.function(*arguments, **named)
        finally:
            self.seconds += time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script that the command line names."""
    file, name, *flags = sys.argv[1:] if arguments is None else arguments
    module = importlib.import_module(name)
    module.evaluate = evaluation = Stopwatch(module.evaluate)
    whole = Stopwatch(module.main)
    utils.run(lambda: whole(flags))
    Path(file).write_text(json.dumps({"main": whole.seconds, "evaluate": evaluation.seconds}))


if __name__ == "__main__":
    main()
