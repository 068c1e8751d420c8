"""Verify and measure this project on a GPU: correctness, speed, and where the time is spent.

    python -m benchmarks.gpu --out DIR
    python -m benchmarks.gpu --out DIR --minutes 40
    python -m benchmarks.gpu --out DIR --quick
    torchrun --nproc_per_node 2 -m benchmarks.gpu --distributed

Needs the packages of requirements.txt and pytest, but neither internet access nor data. Every step is a separate
process with a time limit, which writes its results into DIR at once, as STEP.json; gpu-CARD-DATE.json and .md combine
them every ten seconds, and list what was skipped for lack of time.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from benchmarks.gpu.packages import missing
from benchmarks.gpu.steps import STEPS, Step, Task, end_with_parent, read_sheet, run_steps, stopped_by_sigterm
from errors import UserError, answer_first
from lib.arguments import Parser, positive_float
from lib.outputs import make_folder

MINUTES, QUICK_MINUTES = 8.0, 15.0  # on an H100; on two cores of a CPU


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    names = [step.name for step in STEPS]
    parser = Parser("python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, help="folder of the results")
    add("--minutes", type=positive_float, help=f"for all steps together; default: {MINUTES:g}")
    add("--only", nargs="+", choices=names, default=names, metavar="STEP", help=f"of {', '.join(names)}")
    add("--quick", action="store_true", help="the same steps in tiny form on the CPU: tries the command itself")
    add("--distributed", action="store_true", help="under torchrun: do several GPUs compute what one does, how fast?")
    add("--step", choices=names, help=argparse.SUPPRESS)  # how the command calls itself
    add("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not (args.out or args.distributed):
        raise UserError("--out is missing: name a folder for the results")
    if wanting := missing():
        raise UserError(
            f"these packages of requirements.txt are missing: {', '.join(wanting)}; "
            "docs/gpus.md says how to bring them to a machine without a network"
        )
    return args


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help, mistakes in the flags and missing packages before the imports below

import torch

import utils


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all steps, or the one that is asked for."""
    args = parse_args(arguments)
    if not (args.quick or torch.cuda.is_available()):
        raise UserError("PyTorch finds no CUDA GPU here; --quick tries the command itself on the CPU")
    device = torch.device("cpu" if args.quick else "cuda")
    if args.distributed:
        from benchmarks.gpu.distributed import compare

        compare(device, quick=args.quick, out=args.out)
    elif args.step:
        run_one(args, device)
    else:
        run_all(args, device)


def run_one(args: argparse.Namespace, device: torch.device) -> None:
    """Run one step in this process, which ends with the one that runs all."""
    end_with_parent()
    (step,) = (step for step in STEPS if step.name == args.step)
    with tempfile.TemporaryDirectory() as folder:
        end = time.monotonic() + args.seconds
        task = Task(device, args.quick, end, read_sheet(args.out, step), Path(folder))
        importlib.import_module(f"benchmarks.gpu.{step.name}").run(task)
    measured = [item for found in task.sheet.content.values() if isinstance(found, list) for item in found]
    outcomes = [bool(item["failure"]) for item in measured if isinstance(item, dict) and "failure" in item]
    if any(outcomes):
        raise UserError(f"{sum(outcomes)} of {len(outcomes)} failed")


def run_all(args: argparse.Namespace, device: torch.device) -> None:
    """Run the steps, and put their results together after each. Raises UserError if one failed."""
    from benchmarks import report
    from benchmarks.__main__ import device_name, fresh_compiler_cache
    from benchmarks.gpu.combine import combine

    minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    settings = {"minutes": minutes, "quick": args.quick, "only": args.only}
    make_folder(args.out, "--out")
    stem = args.out / f"gpu-{device_name(device)}-{date.today()}"
    steps = [step for step in STEPS if step.name in args.only]

    def write() -> None:
        report.write(combine(args.out, device.type, settings), stem)

    with fresh_compiler_cache(), stopped_by_sigterm():
        try:
            run_steps(steps, args.out, minutes, ["--quick"] if args.quick else [], write)
        finally:  # also after an interruption
            write()
    print(f"\n{report.markdown(combine(args.out, device.type, settings))}\n{stem}.md, {stem}.json", flush=True)
    check(steps, args.out)


def check(steps: Sequence[Step], out: Path) -> None:
    """Raise UserError if a step failed."""
    failed = [step.name for step in steps if read_sheet(out, step).content.get("failure", "no result")]
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; see the report")


if __name__ == "__main__":
    utils.run(main)
