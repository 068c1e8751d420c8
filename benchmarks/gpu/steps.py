"""The steps of the command, each a process of its own with a time limit; what a step has found so far is on disk.

A step is told when its time ends, and begins nothing that cannot be done by then. One that hangs is killed, and the
next one runs. Imports nothing that takes time: the command's flags are checked with it.
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

GRACE = 5.0  # seconds that a step has for its last figures before it is killed
LEAST = 10.0  # seconds that a step is given in any case
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
REPORT_EVERY = 10.0  # seconds


class Step(NamedTuple):
    """One step."""

    name: str  # of its file, and of its module in this package
    title: str
    share: float  # of the whole time; what a step leaves over goes to the ones behind it


STEPS = (
    Step("environment", "what is there, and how fast it multiplies", 0.10),  # and reading PyTorch from a cold disk
    Step("correct", "is it correct?", 0.28),
    Step("eager", "is it fast, and where does the time go?", 0.16),
    Step("compiled", "the same with torch.compile", 0.30),
    Step("whole", "train.py and test.py as a whole", 0.16),
)


@dataclass
class Sheet:
    """What a step has found: written to its file at once whenever something is added."""

    path: Path
    content: dict[str, Any]

    def add(self, **found: Any) -> None:
        """Write more: lists grow, everything else is replaced."""
        for name, value in found.items():
            self.content[name] = self.content.get(name, []) + value if isinstance(value, list) else value
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")


class Work(NamedTuple):
    """A part of a step, which is begun only if there is time for it."""

    title: str
    seconds: float  # that it takes
    call: Callable[[], dict[str, list[Any]]]  # returns what is found


@dataclass
class Task:
    """Where a step works, and how long."""

    device: torch.device
    quick: bool  # in tiny form
    end: float  # of its time, by `time.monotonic`
    sheet: Sheet
    folder: Path  # for files that nobody needs afterwards

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def each(self, works: Iterable[Work]) -> None:
        """Do one after another; write at once what each finds.

        One begins if there is time for it, and for as long as the longest so far took; the others are named.
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
    """Return what a step has written, or an empty sheet."""
    path = out / f"{step.name}.json"
    try:
        return Sheet(path, json.loads(path.read_text()))
    except FileNotFoundError:
        return Sheet(path, {})


def run_steps(
    steps: Sequence[Step], out: Path, minutes: float, flags: Sequence[str], report: Callable[[], None]
) -> None:
    """Run steps in processes of their own; what they find, and how they end, is in their files.

    flags: of this command, for the step. report: called while a step runs, and when it has ended.
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
    """In this block SIGTERM raises KeyboardInterrupt, so that what was started ends, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it has ended, however; on Linux alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def command(step: Step, out: Path, seconds: float, flags: Sequence[str]) -> list[str]:
    """Return the command line of a step."""
    own = ["--step", step.name, "--out", str(out.resolve()), "--seconds", str(seconds)]
    return [sys.executable, "-m", __package__, *own, *flags]


def _why(errors: Any, code: int) -> str:
    """Print what a process said of its end; return the last line, without this machine's paths."""
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    print("\n".join(f"  {line}" for line in lines[-20:]), flush=True)
    return (lines[-1] if lines else f"exit code {code}").replace(str(ROOT), ".")[:300]
