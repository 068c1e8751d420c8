"""Train the networks that the paper compares, on the sample data: the same stages with different fusion.

    python -m experiments.compare                   # everything that is missing; can be stopped and resumed
    python -m experiments.compare --list            # the trials, and which are done
    python -m experiments.compare --only 'refcoco-cross-seed1' 'refcoco-vision-*'
    python -m experiments.compare --only refcoco-late-seed2 --again
    python -m experiments.compare --results my --sweep my/sweep --runs my/runs    # everything again, in other folders
    python -m experiments.compare --hard            # some of them on data where colours are not sufficient
    python -m experiments.compare --long            # twice as long, without refcoco+
    python -m experiments.compare --hard --long     # two networks on harder data, twice as long
    python -m experiments.compare --recipes         # the paper's network, trained by other recipes
    python -m experiments.compare --quick           # everything on few images, in minutes, to try the command

A trial is one training of about five minutes on a CPU core, twice that with --long. It writes a JSON file to
experiments/results/, is skipped if the file exists, and resumes if it was interrupted: after SIGTERM and Ctrl-C it
saves and exits with code 1. Two trials run in parallel, each on half of the cores. `python -m experiments.report` makes
tables and pictures from the files.

The comparison is fair: all variants have the same data in the same order for a seed, the same steps, batch size and
schedule, the same initial weights in common modules except for the later language stages, and each has the best of the
same learning rates (experiments/plan.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatch
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from errors import UserError, answer_first
from experiments.plan import (
    SAMPLE_SEED,
    SWEPT_ON,
    ExperimentConfig,
    Paths,
    Trial,
    add_comparison_flags,
    all_trials,
    config_and_paths,
    is_outdated,
    missing_sweeps,
)
from lib.arguments import Parser, positive_int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="trials by name, with the wildcards * and ?")
    add("--again", action="store_true", help="remove the files of the trials in --only, and start them again")
    add("--list", action="store_true", help="list the trials, and which are done")
    add("--jobs", type=positive_int, default=2, help="number of parallel trials, which share the cores")
    add_comparison_flags(parser, *Paths._fields)
    args = parser.parse_args(arguments)
    config, _ = config_and_paths(args)
    if args.only and not chosen(config, args.only):
        raise UserError(f"--only {' '.join(args.only)}: there is no such trial; --list lists all")
    if args.again and not args.only:
        raise UserError("--again removes files: name the trials with --only, or all of them with --only '*'")
    return args


def chosen(config: ExperimentConfig, names: Sequence[str]) -> list[Trial]:
    """Return the trials that match one of the names."""
    return [trial for trial in all_trials(config) if any(fnmatch(trial.name, name) for name in names)]


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

import utils
from data.cache import open_cache
from data.sample.make import make_sample
from experiments.trial import cache_path, run_apart
from refer.open import open_data_set
from refer.splits import default_split_by

POLL_SECONDS = 0.2
PRELOAD = ("experiments.trial", "torch._dynamo", "torch.utils.tensorboard", "matplotlib")  # also what it imports later
# A fork has no thread but the one that forked, so the server that forks starts none.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested trials that are missing."""
    args = parse_args(arguments)
    config, paths = config_and_paths(args)
    named = chosen(config, args.only or "*")
    if args.list:
        print("\n".join(f"{'done' if paths.result(trial).exists() else '-':<6}{trial.name}" for trial in named))
        return
    runs = [trial for trial in named if trial.lr is None]
    needed = missing_sweeps(config, paths, {run.variant for run in runs})
    if needed and not config.sweeps:
        raise UserError(
            f"learning rates are chosen without {config.flags[-1]}, but {paths.sweep} lacks some: run that first"
        )
    build_caches(config, paths, {SWEPT_ON, *(trial.dataset for trial in named)})
    if args.again:
        forget(named, paths)
    with utils.StopSignal() as stop:
        pool = JobPool(args.jobs, config, paths, stop)
        pool.work_on_missing([*(trial for trial in named if trial.lr is not None and trial not in needed), *needed])
        pool.work_on_missing(runs)
    done = sum(paths.result(trial).exists() for trial in named)
    print(f"{done} of {len(named)} trials are done; results are in {paths.results}")
    if pool.failed:
        raise UserError(
            f"failed: {', '.join(pool.failed)}; see output.txt in their folders in {paths.runs}. To start them from "
            "the beginning, use --again"
        )
    if done < len(named):
        raise UserError("stopped before the end: the same command, without --again, resumes")


def forget(trials: Sequence[Trial], paths: Paths) -> None:
    """Remove the files of these trials."""
    for trial in trials:
        paths.result(trial).unlink(missing_ok=True)
        shutil.rmtree(paths.run(trial), ignore_errors=True)


def build_caches(config: ExperimentConfig, paths: Paths, datasets: set[str]) -> None:
    """Make the sample data, and the caches of these data sets for all trials."""
    make_sample(paths.data, images=config.images, seed=SAMPLE_SEED, hard=config.hard, version=1)
    for dataset in sorted(datasets):
        refer = open_data_set(paths.data, dataset, default_split_by(dataset))
        open_cache(cache_path(paths, dataset, config), refer, config.img_size, workers=1)


class Job(Protocol):
    """A process of a pool."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def wait(self) -> int:
        """Return the exit code after its end."""


class Fork:
    """A trial in a process forked from a server that has imported everything, which takes seconds."""

    def __init__(self, arguments: list[str], output: Path, threads: int) -> None:
        """Start it; arguments: those of `experiments.trial`. output: its output is added to this file."""
        start_server()
        self._process: BaseProcess = get_context("forkserver").Process(
            target=run_apart, args=(arguments, output, threads)
        )
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def wait(self) -> int:
        """Return the exit code after its end."""
        self._process.join()
        assert self._process.exitcode is not None  # it has ended
        return self._process.exitcode


def start_server() -> None:
    """Start the server that forks, unless it runs."""
    before = dict(os.environ)
    forkserver.set_forkserver_preload(list(PRELOAD))
    os.environ.update(ONE_THREAD)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


class JobPool:
    """Runs trials in several processes in parallel."""

    def __init__(self, jobs: int, config: ExperimentConfig, paths: Paths, stop: utils.StopSignal) -> None:
        self.jobs, self.config, self.paths, self.stop = jobs, config, paths, stop
        self.failed: list[str] = []
        self.stopped = False  # a process was stopped by a signal of its own
        self.running: dict[Trial, Job] = {}

    @property
    def ends(self) -> bool:
        """Whether no further trial should be started."""
        return bool(self.failed or self.stopped or self.stop.came)

    def work_on_missing(self, trials: Sequence[Trial]) -> None:
        """Run the trials without a result, unless the pool ends; UserError if some results are outdated."""
        if self.ends:
            return
        if outdated := [trial.name for trial in trials if is_outdated(self.config, self.paths, trial)]:
            raise UserError(
                f"these results have other learning rates or lengths than now: {', '.join(outdated)}. To make them "
                "again, add them to --only, with --again"
            )
        self.work([trial for trial in trials if not self.paths.result(trial).exists()])

    def work(self, trials: Sequence[Trial]) -> None:
        """Run all trials; after a signal to stop, pass it on and wait until everything is saved."""
        waiting = deque(trials)
        while self.running or (waiting and not self.ends):
            while waiting and len(self.running) < self.jobs and not self.ends:
                trial = waiting.popleft()
                self.running[trial] = self.start(trial)
            time.sleep(POLL_SECONDS)
            if self.stop.came:
                self.end_all()
            for trial in [trial for trial, process in self.running.items() if process.poll() is not None]:
                self.finish(trial, self.running.pop(trial).wait())

    def start(self, trial: Trial) -> Job:
        """Start a process for a trial; its output is written to its folder."""
        folder = self.paths.run(trial)
        folder.mkdir(parents=True, exist_ok=True)
        flags = [f"--{name}={path}" for name, path in self.paths._asdict().items()]
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        print(f"{trial.name}: started", flush=True)
        return Fork([trial.name, *flags, *self.config.flags], folder / "output.txt", threads)

    def finish(self, trial: Trial, code: int) -> None:
        """Print the outcome of a trial."""
        path = self.paths.result(trial)
        if path.exists():
            print(f"{trial.name}: {describe_result(path)}", flush=True)
        elif self.stop.came or code == 0:
            self.stopped = True
            print(f"{trial.name}: stopped and saved; the same command, without --again, resumes", flush=True)
        else:
            self.failed.append(trial.name)
            print(f"{trial.name}: failed", flush=True)

    def end_all(self) -> None:
        """Ask all processes to save and end."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()


def describe_result(path: Path) -> str:
    """Return the scores of a result on val as text."""
    result = json.loads(path.read_text(encoding="utf-8"))
    val = result["metrics"]["val"] if "metrics" in result else result
    return (
        f"learning rate {result['lr']:g}, mean IoU {val['mean_iou']:.2f}, overall IoU {val['overall_iou']:.2f} on val"
    )


if __name__ == "__main__":
    utils.run(main)
