"""Disturb trainings as clusters do, resume with `--resume auto`, and compare with an undisturbed run, bit for bit.

    python -m tests.fault_drill --kills 20

Two processes under a launcher train a nano network on the sample data. They are killed by force at random moments,
checkpoint writing included, and then stopped by a signal; one process alone is stopped, finds states that are truncated
or have a flipped bit, and a full disk. Every drill ends with the weights, optimizer state and log of the undisturbed
run, or this program ends with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from errors import answer_first
from lib.arguments import HelpFormatter, non_negative_int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked flags; arguments: None for those of the command line."""
    parser = argparse.ArgumentParser("python -m tests.fault_drill", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--kills", type=non_negative_int, default=20, help="times to kill the training")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the moments")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from data.sample.make import make_sample
from tests.helpers import flip_bit
from tests.training_runs import ROOT, differences, launch, start, start_launcher, training_flags
from tests.warm import Script

LAST, BEFORE, BEST = "last_refcoco.pth", "last_refcoco.1.pth", "best_refcoco.pth"
MOMENTS = ("while a state is written", "in training", "anywhere from the start")
SHORT_EPOCHS = 2
PATIENCE = 180  # seconds to wait for a moment before giving up
PATIENCE_TO_THE_END = 3600


class Failed(Exception):
    """A drill did not end as it must."""


class Run:
    """A training into one folder, which is started, disturbed and resumed."""

    def __init__(self, root: Path, folder: Path, epochs: int, n_processes: int) -> None:
        self.root, self.folder, self.epochs, self.n_processes = root, folder, epochs, n_processes
        flags = ["-b", 4 // n_processes, "--epochs", epochs, "--limit-train", 20, "--limit-val", 2, "--workers", 1]
        self.flags = training_flags(root, folder, *flags, "--save-every", 2, "--resume", "auto")
        self.output = folder.with_suffix(".txt")
        self.started = 0.0

    def start(self) -> Script:
        """Start or resume the training, in one forked process or in several under a launcher."""
        self.started = time.monotonic()
        self.output.unlink(missing_ok=True)
        if self.n_processes == 1:
            (script,) = start(1, ROOT / "train.py", *self.flags, output=self.output)
            return script
        return start_launcher(self.n_processes, ROOT / "train.py", *self.flags, output=self.output)

    def run_undisturbed(self) -> None:
        """Train to the end without a launcher; raise Failed where this fails."""
        outcome = launch(self.n_processes, ROOT / "train.py", *self.flags, timeout=PATIENCE_TO_THE_END)
        check(outcome.returncode == 0, f"the undisturbed training failed:\n{outcome.stdout}{outcome.stderr}")

    def finish(self, longest: int | None = None) -> int:
        """Go on until the training ends by itself, and return its exit code; longest: bytes that a file may have.

        The processes are forked: what a launcher does was seen before.
        """
        self.output.unlink(missing_ok=True)
        processes = start(self.n_processes, ROOT / "train.py", *self.flags, output=self.output)
        if longest is not None:
            for process in processes:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (longest, longest))
        codes = [process.wait(timeout=PATIENCE_TO_THE_END) for process in processes]
        return next(filter(None, codes), 0)

    def text(self) -> str:
        """Return what the newest start has printed."""
        return self.output.read_text()

    def stamp(self) -> int:
        """Return a number that changes with every new state."""
        path = self.folder / LAST
        return path.stat().st_mtime_ns if path.exists() else 0

    def is_writing(self) -> bool:
        """Return whether a file is half-written."""
        return any(self.folder.glob(".*.pth.*.tmp"))

    def stop_by_signal(self) -> int:
        """Send SIGTERM to the started command after its first new state, and return its exit code."""
        stamp, process = self.stamp(), self.start()
        wait_for(lambda: self.stamp() != stamp, process)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=120)

    def copy(self, folder: Path) -> Run:
        """Return a copy of this run. Its states are hard links, because files of states are only ever replaced."""
        shutil.copytree(self.folder, folder, copy_function=copy_or_link)
        return Run(self.root, folder, self.epochs, self.n_processes)

    def must_finish_as(self, whole: Run) -> None:
        """Go on to the end, and remove what is left; raise Failed as `must_equal` does, or where this fails."""
        check(self.finish() == 0, self.text())
        self.must_equal(whole)
        self.remove()

    def remove(self) -> None:
        """Remove the folder, whose states are large; the output stays."""
        shutil.rmtree(self.folder)

    def must_equal(self, whole: Run) -> None:
        """Raise Failed where this run's files are not those of the undisturbed one."""
        for name in (LAST, BEST):
            found = differences(whole.folder / name, self.folder / name)
            check(not found, f"{name} differs from the undisturbed run in {len(found)} values: {found[:5]}")


def copy_or_link(source: str, target: str) -> None:
    """Link a state if it is on the same disk, and copy everything else."""
    if source.endswith(".pth"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def check(passed: bool, message: str) -> None:
    """Raise Failed with a message unless something holds."""
    if not passed:
        raise Failed(message)


def wait_for(condition: Callable[[], bool], process: Script) -> bool:
    """Wait until a condition holds, and return whether it came before the process's end."""
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if condition():
            return True
        check(time.monotonic() < end, f"nothing happened for {PATIENCE} s")
        time.sleep(0.001)
    return False


def descendants(pid: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for member in found:  # grows while it is gone through
        found += [child for child, parent in parents.items() if parent == member]
    return found


def kill_by_force(process: subprocess.Popen | Script) -> None:
    """End launcher, trainings and data loaders at once, as a node that loses power does."""
    process.send_signal(signal.SIGSTOP)  # so that it starts nothing meanwhile
    kill(descendants(process.pid))
    process.wait(timeout=PATIENCE)


def kill(pids: list[int]) -> None:
    """End processes by force, if they are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Moments:
    """Random moments to kill a training at."""

    def __init__(self, seed: int, training: float) -> None:
        """training: maximum number of seconds that a training runs after a state."""
        self.chance, self.startup, self.training = random.Random(seed), 0.0, training

    def wait(self, name: str, run: Run, process: Script) -> bool:
        """Wait for a moment; return whether the training was still running then."""
        if name == "anywhere from the start":
            end = run.started + self.chance.uniform(0, 1.2 * self.startup)
            return wait_for(lambda: time.monotonic() > end, process)
        stamp = run.stamp()
        if not wait_for(lambda: run.stamp() != stamp, process):
            return False
        self.startup = time.monotonic() - run.started
        if name == "while a state is written":
            pids = descendants(process.pid)  # beforehand: a write takes a tenth of a second
            if wait_for(run.is_writing, process):
                kill(pids)
                return True
            return False
        end = time.monotonic() + self.chance.uniform(0, self.training)
        return wait_for(lambda: time.monotonic() > end, process)


def drill_kills(root: Path, folder: Path, kills: int, seed: int) -> None:
    """Kill two processes again and again; then tell their launcher to stop."""
    whole, hurt = (Run(root, folder / name, 2 + kills, 2) for name in ("whole", "killed"))
    begin = time.monotonic()
    whole.run_undisturbed()
    moments, unfinished = Moments(seed, (time.monotonic() - begin) / (2 * max(kills, 1))), 0
    for number in range(kills):
        name, process = MOMENTS[number % len(MOMENTS)], hurt.start()
        check(moments.wait(name, hurt, process), f"the training ended by itself:\n{hurt.text()}")
        kill_by_force(process)
        unfinished += hurt.is_writing()
        print(f"  kill {number + 1}, {name}, {time.monotonic() - hurt.started:.1f} s after the start", flush=True)
    print(f"  {unfinished} of {kills} kills left a half-written file")
    check(unfinished > 0 or kills < 2 * len(MOMENTS), "no kill came while a state was written")
    hurt.stop_by_signal()
    check(f"saved, resume with --resume {hurt.folder / LAST}" in hurt.text(), hurt.text())
    hurt.must_finish_as(whole)
    whole.remove()
    print("  SIGTERM to the launcher: saved, resumed")


def drill_signal(root: Path, folder: Path, whole: Run) -> Run:
    """Stop one process by a signal, twice; return the stopped run, which has two states."""
    stopped = Run(root, folder / "stopped", SHORT_EPOCHS, n_processes=1)
    for _ in range(2):
        check(stopped.stop_by_signal() == 0, stopped.text())
        check(f"saved, resume with --resume {stopped.folder / LAST}" in stopped.text(), stopped.text())
    check((stopped.folder / BEFORE).exists(), "only one state was kept")
    stopped.copy(folder / "went_on").must_finish_as(whole)
    print("  SIGTERM to one process: exit code 0, saved, resumed")
    return stopped


def drill_damage(folder: Path, stopped: Run, whole: Run) -> None:
    """Cut the newest state short; flip a bit of it."""
    for name, damage in (("truncated", truncate), ("bit-flipped", flip_bit)):
        hurt = stopped.copy(folder / name)
        shutil.copy2(stopped.folder / LAST, replacement := hurt.folder / "replacement")
        replacement.replace(hurt.folder / LAST)  # the other run's is to stay as it is
        damage(hurt.folder / LAST)
        hurt.must_finish_as(whole)
        check("damaged" in hurt.text() and f"resumed {hurt.folder / BEFORE}" in hurt.text(), hurt.text())
        print(f"  {name}: refused aloud, the state before used")


def truncate(path: Path) -> None:
    """Leave two thirds of a file."""
    os.truncate(path, path.stat().st_size * 2 // 3)


def drill_full_disk(folder: Path, stopped: Run, whole: Run) -> None:
    """Let a state find no room."""
    with small_disk(folder / "disk") as (place, crowd, longest):
        hurt = stopped.copy(place / "run")
        before = (hurt.folder / LAST).read_bytes()
        crowd(len(before))
        check(hurt.finish(longest(len(before))) == 1, f"a full disk went unnoticed:\n{hurt.text()}")
        check("could not be written" in hurt.text() and "Traceback" not in hurt.text(), hurt.text())
        check((hurt.folder / LAST).read_bytes() == before, "the state before was touched")
        crowd(0)
        hurt.must_finish_as(whole)
        print("  a clear error, the previous state intact; resumed with free space")


@contextmanager
def small_disk(place: Path) -> Iterator[tuple[Path, Callable[[int], None], Callable[[int], int | None]]]:
    """Provide a small file system or, if none may be mounted, a limit on the size of files.

    Yields the folder, a function that leaves less room than that many bytes (0: all there is), and one that returns
    how long a process's files may be so.
    """
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    print(f"  the disk is {'a small tmpfs' if mounted else 'a limit on file sizes: nothing may be mounted here'}")

    def crowd(size: int) -> None:
        ballast = place / "ballast"
        ballast.unlink(missing_ok=True)
        if mounted and size:
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            ballast.write_bytes(bytes(free - size // 2))

    def longest(size: int) -> int | None:
        return None if mounted else size // 2

    try:
        yield place, crowd, longest
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all drills."""
    args = parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fault_drill_") as name:
        folder = Path(name)
        root = folder / "data"
        make_sample(root, images=16, seed=3)
        print(f"two processes, killed by force {args.kills} times", flush=True)
        drill_kills(root, folder, args.kills, args.seed)
        print("one process, told to stop", flush=True)
        whole = Run(root, folder / "alone", SHORT_EPOCHS, n_processes=1)
        whole.run_undisturbed()
        stopped = drill_signal(root, folder, whole)
        print("damaged states", flush=True)
        drill_damage(folder, stopped, whole)
        print("full disk", flush=True)
        drill_full_disk(folder, stopped, whole)
    print("nothing was lost: every run ended as the undisturbed one")


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"error: {error}")
