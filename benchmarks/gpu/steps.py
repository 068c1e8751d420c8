"""The steps of the command, each a separate process with a time limit that writes its results to disk at once.

A step knows its time limit, and starts nothing that would take longer. A step that hangs is killed, and the next one
runs. Imports nothing slow, because it is needed for checking the flags.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lib.files import ROOT, write_text

if TYPE_CHECKING:  # the command's flags name the steps, and are answered before anything that takes seconds
    import torch

GRACE = 5.0  # seconds between the time limit of a step and its kill
LEAST = 10.0  # minimum time of a step in seconds
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
REPORT_EVERY = 10.0  # seconds


class Step(NamedTuple):
    """One step."""

    name: str  # of its file, and of its module in this package
    title: str
    share: float  # fraction of the whole time; later steps get the time that a step does not use


STEPS = (
    Step("environment", "what is there, and how fast it multiplies", 0.10),  # and reading PyTorch from a cold disk
    Step("correct", "is it correct?", 0.28),
    Step("eager", "is it fast, and where does the time go?", 0.16),
    Step("compiled", "the same with torch.compile", 0.30),
    Step("whole", "train.py and test.py as a whole", 0.16),
)


@dataclass
class Sheet:
    """The results of a step, written to its file whenever something is added."""

    path: Path
    content: dict[str, Any]

    def add(self, **results: Any) -> None:
        """Add results and write them: lists are extended, other values replaced."""
        for name, value in results.items():
            self.content[name] = self.content.get(name, []) + value if isinstance(value, list) else value
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")


class Work(NamedTuple):
    """A part of a step, which is started only if there is enough time."""

    title: str
    seconds: float  # estimated time
    call: Callable[[], dict[str, list[Any]]]  # returns the results


@dataclass
class Task:
    """The settings of a step."""

    device: torch.device
    quick: bool  # in tiny form
    end: float  # time limit, in terms of `time.monotonic`
    sheet: Sheet
    folder: Path  # for temporary files

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.end - time.monotonic()

    def each(self, works: Iterable[Work]) -> None:
        """Run the works in turn, and write the results of each at once.

        A work is started if there is time for its estimate and for the longest work so far; otherwise it is listed as
        left out.
        """
        longest = 0.0
        for work in works:
            begin = time.monotonic()
            if self.left() < max(work.seconds, longest):
                self.sheet.add(left_out=[work.title])
                continue
            print(f"  {work.title}", flush=True)
            self.sheet.add(**work.call())
            longest = max(longest, time.monotonic() - begin)


def read_sheet(out: Path, step: Step) -> Sheet:
    """Return the results that a step has written, or an empty sheet."""
    path = out / f"{step.name}.json"
    try:
        return Sheet(path, json.loads(path.read_text()))
    except FileNotFoundError:
        return Sheet(path, {})


def run_steps(
    steps: Sequence[Step], out: Path, minutes: float, flags: Sequence[str], report: Callable[[], None]
) -> None:
    """Run the steps in separate processes; results and outcomes are in their files.

    flags: passed on to the steps. report: called while a step runs, and after it has ended.
    """
    begin, whole = time.monotonic(), sum(step.share for step in steps)
    due = 0.0
    for step in steps:
        due += step.share / whole
        (out / f"{step.name}.json").unlink(missing_ok=True)
        seconds = max(LEAST, begin + due * 60 * minutes - time.monotonic())
        print(f"{step.name}: {step.title} ({seconds:.0f} s at most)", flush=True)
        ended = run_step(step, out, seconds, flags, report)
        read_sheet(out, step).add(**ended)
        if ended["failure"]:
            print(f"  {step.name} failed: {ended['failure']}", flush=True)
        report()


def run_step(step: Step, out: Path, seconds: float, flags: Sequence[str], report: Callable[[], None]) -> dict[str, Any]:
    """Run a step; return its `seconds` and `failure`, "" if there was none."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        line = command(step, out, seconds - GRACE, flags)
        process = subprocess.Popen(line, cwd=ROOT, stderr=errors, start_new_session=True)
        try:
            code = _wait(process, begin + seconds, report)
            if code is None:
                failure = f"stopped after {seconds:.0f} s: its time was up"
            else:
                failure = "" if code == 0 else _why(errors, code)
        finally:
            with suppress(ProcessLookupError):  # itself, and whatever it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"seconds": round(time.monotonic() - begin, 1), "failure": failure}


def _wait(process: subprocess.Popen[bytes], end: float, report: Callable[[], None]) -> int | None:
    """Return the exit code, or None if the process still runs at the end; report now and then."""
    while (left := end - time.monotonic()) > 0:
        try:
            return process.wait(min(left, REPORT_EVERY))
        except subprocess.TimeoutExpired:
            report()
    return None


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """In this block SIGTERM raises KeyboardInterrupt, so that child processes are also ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Let the system kill this process when its parent has ended in any way; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def command(step: Step, out: Path, seconds: float, flags: Sequence[str]) -> list[str]:
    """Return the command line of a step."""
    step_flags = ["--step", step.name, "--out", str(out.resolve()), "--seconds", str(seconds)]
    return [sys.executable, "-m", __package__, *step_flags, *flags]


def _why(errors: Any, code: int) -> str:
    """Print the last errors of a process; return the last line, without paths of this machine."""
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    print("\n".join(f"  {line}" for line in lines[-20:]), flush=True)
    return (lines[-1] if lines else f"exit code {code}").replace(str(ROOT), ".")[:300]
