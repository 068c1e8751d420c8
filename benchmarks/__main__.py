"""Measure the speed of the network, and compare it with a plain assembly of the same layers in the same run.

    python -m benchmarks
    python -m benchmarks --quick
    python -m benchmarks --types tiny base --sizes 480 --batch-sizes 1 2 --precisions fp32 bf16 --skip-memory

It measures forward passes and training steps of every type, size and batch size, eager and compiled, also relative to
the best rate of matrix products and convolutions on this device; peak memory; and the commands `train.py` and `test.py`
on the sample data. After every case it writes tables and all times into `--out`, as DEVICE-DATE.md and .json.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import product
from pathlib import Path

from errors import answer_first
from lib.arguments import Parser, image_side, positive_int
from lib.outputs import check_folder
from lib.variants import PRECISIONS, SWIN_VARIANTS

PUBLISHED = ["tiny", "small", "base", "large"]
PARTS = ("forward", "training", "memory", "end-to-end")
# The defaults: on the CPU, what takes two cores less than an hour.
DEFAULTS = {
    "cpu": {
        "types": PUBLISHED,
        "train_types": ["tiny", "base"],
        "sizes": [480],
        "batch_sizes": [1],
        "train_batch_sizes": [2],
        "precisions": ["fp32", "bf16"],
        "repeats": 5,
    },
    "cuda": {
        "types": PUBLISHED,
        "train_types": PUBLISHED,
        "sizes": [480],
        "batch_sizes": [1, 8, 32],
        "train_batch_sizes": [8],
        "precisions": ["fp32", "tf32", "bf16"],
        "repeats": 10,
    },
}
QUICK_DEFAULTS = {
    "types": ["nano"],
    "train_types": ["nano"],
    "sizes": [64],
    "batch_sizes": [2],
    "train_batch_sizes": [2],
    "precisions": ["fp32", "bf16"],
    "repeats": 3,
}


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags, None for those that are not given; arguments: None for `sys.argv`."""
    parser = Parser("python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--device", choices=DEFAULTS, help="where to measure; default: cuda if there is one")
    add("--types", nargs="+", choices=SWIN_VARIANTS, help="Swin types of the forward passes")
    add("--train-types", nargs="+", choices=SWIN_VARIANTS, help="Swin types of the training steps; default: --types")
    add("--sizes", nargs="+", type=image_side, help="image sizes")
    add("--batch-sizes", nargs="+", type=positive_int, help="of the forward passes")
    add("--train-batch-sizes", nargs="+", type=positive_int, help="of the training steps")
    add("--precisions", nargs="+", choices=PRECISIONS, help="of the project's own variants; plain is fp32")
    add(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="also measure compiled variants; default: unless --quick",
    )
    add("--compiled-training", action="store_true", help="also compile training steps on the CPU: hours")
    add("--repeats", type=positive_int, help="timed rounds, after two calls to warm up; whole evaluations: 3 at most")
    add("--quick", action="store_true", help="the nano network at 64 pixels: tries in minutes whether all works")
    for part in PARTS:
        add(f"--skip-{part}", action="store_true", help=f"leave out {part.replace('-', ' ')}")
    add("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    args = parser.parse_args(arguments)
    if args.types and not args.train_types:
        args.train_types = args.types
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import torch

import utils
from benchmarks import report
from benchmarks.cases import Case
from benchmarks.compare import Bench, Row
from benchmarks.end_to_end import QUICK, SETUPS, EndToEnd
from benchmarks.machine import describe_machine
from benchmarks.peak_memory import in_subprocess, measure_peak
from benchmarks.roofline import measure_rates
from benchmarks.targets import Results
from benchmarks.timing import FAILURES, describe
from benchmarks.variants import PLAIN, variants

COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the flags say, and write the results after every case."""
    args = parse_args(arguments)
    check_folder(args.out, "--out")
    device = utils.find_device(args.device)
    utils.make_current(device)  # the one that the clock waits for
    fill_in(args, device)
    settings = {name: value for name, value in vars(args).items() if name not in ("device", "out")}
    results = Results(device.type, describe_machine(device), settings)
    stem = args.out / f"{device_name(device)}-{date.today()}"
    with fresh_compiler_cache():
        for title in measure(args, device, results):
            print(title, flush=True)
            report.write(results, stem)
    print(f"\n{report.markdown(results)}\n{stem}.md, {stem}.json")


def fill_in(args: argparse.Namespace, device: torch.device) -> None:
    """Set the flags that are not given to the defaults of the device."""
    defaults = {"compiled": not args.quick} | (QUICK_DEFAULTS if args.quick else DEFAULTS[device.type])
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


@contextmanager
def fresh_compiler_cache() -> Iterator[None]:
    """Use a new compiler cache in this process and its children, because first calls are timed."""
    before = os.environ.get(COMPILER_CACHE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[COMPILER_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[COMPILER_CACHE]
            if before is not None:
                os.environ[COMPILER_CACHE] = before


def device_name(device: torch.device) -> str:
    """Return "cpu" or the name of the GPU in lower case, for file names."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def measure(args: argparse.Namespace, device: torch.device, results: Results) -> Iterator[str]:
    """Fill the results part by part, and yield the name of each part."""
    results.rates = measure_rates(sorted({PLAIN.precision, *args.precisions}), args.repeats, device, quick=args.quick)
    yield "rates of the device"
    ways = [False, True] if args.compiled else [False]
    bench = Bench(device, variants(args.precisions, ways), results.rates, args.repeats)
    if not args.skip_forward:
        for case in map(Case._make, product(args.types, args.sizes, args.batch_sizes)):
            results.rows += bench.forward(case)
            yield f"forward pass {case}"
    if not args.skip_training:
        # Compiling the backward pass takes two CPU cores longer than everything else together.
        training_ways = ways if device.type == "cuda" or args.compiled_training else [False]
        training_bench = Bench(device, variants(args.precisions, training_ways), results.rates, args.repeats)
        for case in map(Case._make, product(args.train_types, args.sizes, args.train_batch_sizes)):
            rows = training_bench.training(case)
            results.rows += rows
            yield f"training step {case}"
            if device.type == "cpu" and not args.skip_memory:  # on a GPU it is already measured
                yield from measure_memory(rows)
    if not args.skip_end_to_end:
        yield from measure_end_to_end(args, device, results)


def measure_memory(rows: Sequence[Row]) -> Iterator[str]:
    """Add the peak memory of the timed training steps, each measured in a separate process."""
    for row in rows:
        try:
            row.memory = in_subprocess(measure_peak, row.case, row.variant, torch.get_num_threads())
        except FAILURES as error:
            row.memory_failure = describe(error)
        yield f"memory of a training step {row.case}, {row.variant}"


def measure_end_to_end(args: argparse.Namespace, device: torch.device, results: Results) -> Iterator[str]:
    """Run `train.py` and `test.py` on a temporary sample data set."""
    with tempfile.TemporaryDirectory() as folder:
        runs = EndToEnd(QUICK if args.quick else SETUPS[device.type], device, Path(folder))
        results.trainings = runs.train()
        yield "train.py"
        results.evaluations = runs.evaluate(min(args.repeats, 3))
        yield "test.py"


if __name__ == "__main__":
    utils.run(main)
