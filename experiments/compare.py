"""Train the networks that the paper compares, on the sample data: the same stages in other wirings.

    python -m experiments.compare                   # everything that is missing; may be stopped and started again
    python -m experiments.compare --list            # the pieces, and which are done
    python -m experiments.compare --only 'refcoco-cross-seed1' 'refcoco-vision-*'
    python -m experiments.compare --only refcoco-late-seed2 --again
    python -m experiments.compare --results my --sweep my/sweep --runs my/runs    # all anew, beside what is there
    python -m experiments.compare --hard            # some of them on data where a colour alone says little
    python -m experiments.compare --long            # twice as long, without refcoco+
    python -m experiments.compare --hard --long     # two networks on harder data, twice as long
    python -m experiments.compare --quick           # everything on few images, in minutes: does it run?

A piece is one training of about five minutes on a CPU core, twice that with --long. Each leaves a JSON file in
experiments/results/, is skipped where that exists, and goes on where it was interrupted: SIGTERM and Ctrl-C save first,
and end with exit code 1. Two run at a time, each on half of the cores. `python -m experiments.report` makes tables and
pictures of the files.

Fair means: the same data in the same order for a seed, the same steps, batch and schedule, the same starting weights in
what variants share but for the later language stages, and for each variant the best of the same learning rates
(experiments/pieces.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from errors import UserError, run
from experiments.pieces import (
    SAMPLE_SEED,
    SWEPT_ON,
    Folders,
    Piece,
    Setting,
    add_places,
    all_pieces,
    is_outdated,
    missing_sweeps,
    places,
)
from lib.arguments import Parser, positive_int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="pieces by name, * and ? stand for anything")
    add(
        "--again", action="store_true", help="begin the pieces that --only names anew, and remove what is there of them"
    )
    add("--list", action="store_true", help="name the pieces and say which are done")
    add("--jobs", type=positive_int, default=2, help="pieces at a time; the cores are divided among them")
    add_places(parser, *Folders._fields)
    args = parser.parse_args(arguments)
    setting, _ = places(args)
    if args.only and not chosen(setting, args.only):
        raise UserError(f"--only {' '.join(args.only)}: nothing is called so; --list names everything")
    if args.again and not args.only:
        raise UserError("--again removes what is there: name the pieces with --only, or everything with --only '*'")
    return args


def chosen(setting: Setting, names: Sequence[str]) -> list[Piece]:
    """Return the pieces that `--only` names."""
    return [piece for piece in all_pieces(setting) if any(fnmatch(piece.name, name) for name in names)]


if __name__ == "__main__":
    run(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import utils
from data.cache import open_cache
from data.sample.make import make_sample
from experiments.piece import cache_path
from refer.open import open_data_set
from refer.splits import default_split_by

POLL_SECONDS = 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the pieces that are asked for and missing."""
    args = parse_args(arguments)
    setting, folders = places(args)
    named = chosen(setting, args.only or "*")
    if args.list:
        print("\n".join(f"{'done' if folders.result(piece).exists() else '-':<6}{piece.name}" for piece in named))
        return
    runs = [piece for piece in named if piece.lr is None]
    needed = missing_sweeps(setting, folders, {run.variant for run in runs})
    if needed and not setting.sweeps:
        raise UserError(
            f"learning rates are chosen without {setting.flags[-1]}, and {folders.sweep} lacks some: do so first"
        )
    prepare(setting, folders, {SWEPT_ON, *(piece.dataset for piece in named)})
    if args.again:
        forget(named, folders)
    with utils.StopSignal() as stop:
        crew = Crew(args.jobs, setting, folders, stop)
        crew.work_on_missing([*(piece for piece in named if piece.lr is not None and piece not in needed), *needed])
        crew.work_on_missing(runs)
    done = sum(folders.result(piece).exists() for piece in named)
    print(f"{done} of {len(named)} pieces are done; results are in {folders.results}")
    if crew.failed:
        raise UserError(
            f"failed: {', '.join(crew.failed)}; why stands in output.txt in their folders in {folders.runs}. What is "
            "begun there and of no use any more can be begun anew with --again"
        )
    if done < len(named):
        raise UserError("stopped before all was done: the same command, without --again, goes on")


def forget(pieces: Sequence[Piece], folders: Folders) -> None:
    """Remove what is there of some pieces."""
    for piece in pieces:
        folders.result(piece).unlink(missing_ok=True)
        shutil.rmtree(folders.run(piece), ignore_errors=True)


def prepare(setting: Setting, folders: Folders, datasets: set[str]) -> None:
    """Make the sample data and, once for all pieces, the resized images of these data sets."""
    make_sample(folders.data, images=setting.images, seed=SAMPLE_SEED, hard=setting.hard)
    for dataset in sorted(datasets):
        refer = open_data_set(folders.data, dataset, default_split_by(dataset))
        open_cache(cache_path(folders, dataset, setting), refer, setting.img_size, workers=1)


class Crew:
    """Processes that work on pieces, a few at a time."""

    def __init__(self, jobs: int, setting: Setting, folders: Folders, stop: utils.StopSignal) -> None:
        self.jobs, self.setting, self.folders, self.stop = jobs, setting, folders, stop
        self.failed: list[str] = []
        self.stopped = False  # a process by a signal of its own
        self.running: dict[Piece, subprocess.Popen[bytes]] = {}

    @property
    def ends(self) -> bool:
        """Whether nothing more is to be started."""
        return bool(self.failed or self.stopped or self.stop.came)

    def work_on_missing(self, pieces: Sequence[Piece]) -> None:
        """Do those that are not done, unless something ended before; UserError where some are done otherwise."""
        if self.ends:
            return
        if outdated := [piece.name for piece in pieces if is_outdated(self.setting, self.folders, piece)]:
            raise UserError(
                f"made with other learning rates or lengths than now: {', '.join(outdated)}. Add them to --only, with "
                "--again, to make them anew"
            )
        self.work([piece for piece in pieces if not self.folders.result(piece).exists()])

    def work(self, pieces: Sequence[Piece]) -> None:
        """Do all pieces; where a signal asks for an end, pass it on and wait until everything is saved."""
        waiting = deque(pieces)
        while self.running or (waiting and not self.ends):
            while waiting and len(self.running) < self.jobs and not self.ends:
                piece = waiting.popleft()
                self.running[piece] = self.start(piece)
            time.sleep(POLL_SECONDS)
            if self.stop.came:
                self.end_all()
            for piece in [piece for piece, process in self.running.items() if process.poll() is not None]:
                self.finish(piece, self.running.pop(piece).returncode)

    def start(self, piece: Piece) -> subprocess.Popen[bytes]:
        """Start a process for a piece; what it prints goes into its folder."""
        folder = self.folders.run(piece)
        folder.mkdir(parents=True, exist_ok=True)
        flags = [f"--{name}={path}" for name, path in self.folders._asdict().items()]
        flags += self.setting.flags
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        print(f"{piece.name}: started", flush=True)
        with (folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "experiments.piece", piece.name, *flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )

    def finish(self, piece: Piece, code: int) -> None:
        """Say what became of a piece."""
        path = self.folders.result(piece)
        if path.exists():
            print(f"{piece.name}: {describe(path)}", flush=True)
        elif self.stop.came or code == 0:
            self.stopped = True
            print(f"{piece.name}: stopped and saved; the same command, without --again, goes on", flush=True)
        else:
            self.failed.append(piece.name)
            print(f"{piece.name}: failed", flush=True)

    def end_all(self) -> None:
        """Ask all processes once to save and end."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


def describe(path: Path) -> str:
    """Return a result's scores on val for a reader."""
    result = json.loads(path.read_text(encoding="utf-8"))
    val = result["metrics"]["val"] if "metrics" in result else result
    return (
        f"learning rate {result['lr']:g}, mean IoU {val['mean_iou']:.2f}, overall IoU {val['overall_iou']:.2f} on val"
    )


if __name__ == "__main__":
    utils.run(main)
