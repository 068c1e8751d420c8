"""Trainings in places that give little, each in a namespace of its own: they work, or end with one line that helps."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.training_runs import ROOT, environment, training_flags

pytestmark = pytest.mark.slow  # starts Python anew
FEW = ["-b", 4, "--epochs", 1, "--limit-train", 8, "--limit-val", 4]


def namespace(*commands: str, **variables: str) -> CompletedProcess[str]:
    """Run shell commands in a namespace that allows mounts, with a view of this machine's files.

    Skips the test if the system allows no such namespace. A hanging command fails after two minutes.
    """
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-e", "-c"]
    if not shutil.which("unshare") or subprocess.run([*inside, "mount -t tmpfs none /mnt"], check=False).returncode:
        pytest.skip("no namespaces here")
    return subprocess.run(
        [*inside, "\n".join(commands)], capture_output=True, text=True, env=environment() | variables, timeout=120
    )


def train(code: Path, *flags: object) -> str:
    return shlex.join([sys.executable, str(code / "train.py"), *map(str, flags)])


def errors(outcome: CompletedProcess[str]) -> list[str]:
    return [line for line in outcome.stderr.splitlines() if line.startswith("error")]


def test_a_checkout_and_a_home_that_cannot_be_written_to(sample_root: Path, tmp_path: Path) -> None:
    """Python leaves out its caches there; a run into the checkout is refused, one into another folder is trained."""
    code, home, out = (tmp_path / name for name in ("code", "home", "out"))
    for folder in (code, home):
        folder.mkdir()
    mount = [f"mount --bind {ROOT} {code}", f"mount -o remount,ro,bind {code}", f"mount -t tmpfs -o ro none {home}"]
    flags = training_flags(sample_root, out, *FEW, "--workers", 0)
    here = [flag for flag in flags if flag not in ("--output-dir", str(out))]
    refused = f"cd {code}; ! {train(Path(), *here)}"
    outcome = namespace(*mount, refused, train(code, *flags), HOME=str(home), PYTHONPATH=str(code))
    assert outcome.returncode == 0, outcome.stderr
    (line,) = errors(outcome)
    assert "--output-dir checkpoints" in line and "choose another" in line
    assert (out / "last_refcoco.pth").exists()


@pytest.mark.parametrize("size", ["4k", "1m"])
def test_little_shared_memory_ends_with_the_remedy(sample_root: Path, tmp_path: Path, size: str) -> None:
    flags = training_flags(sample_root, tmp_path / "out", *FEW, "--img_size", 224, "--workers", 1)
    outcome = namespace(f"mount -t tmpfs -o size={size} none /dev/shm", train(ROOT, *flags))
    assert outcome.returncode == 1
    (line,) = errors(outcome)
    assert "/dev/shm" in line and "--workers" in line
    assert "Traceback" not in outcome.stderr


def test_no_room_for_a_state_ends_with_the_remedy(sample_root: Path, tmp_path: Path) -> None:
    """Nor for what TensorBoard writes first."""
    flags = training_flags(sample_root, tmp_path / "disk" / "run", *FEW, "--workers", 0)
    (tmp_path / "disk").mkdir()
    outcome = namespace(
        f"mount -t tmpfs -o size={os.sysconf('SC_PAGESIZE') * 4} none {tmp_path}/disk", train(ROOT, *flags)
    )
    assert outcome.returncode == 1
    (line,) = errors(outcome)
    assert str(tmp_path / "disk") in line and "No space left" in line
