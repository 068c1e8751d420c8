"""A worker killed by force comes back through torch's elastic launcher and `--resume auto`, on one and two machines."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests import restart_worker
from tests.fault_drill import descendants, kill_by_force
from tests.helpers import free_port, wait_until
from tests.training_runs import FORKING, ROOT, differences, launch, start_launcher, training_flags
from tests.warm import Script

pytestmark = pytest.mark.slow  # launchers, which start their workers anew
FLAGS = ["-b", 3, "--epochs", 2, "--limit-train", 18, "--limit-val", 2, "--workers", 0, "--save-every", 1]


@pytest.fixture(scope="module")
def whole(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = launch(2, ROOT / "train.py", *training_flags(sample_root, folder, *FLAGS))
    assert outcome.returncode == 0, outcome.stderr
    return folder


def workers(launcher: Script) -> list[int]:
    """Return the training processes under a launcher."""
    found = []
    for pid in descendants(launcher.pid)[1:]:
        with suppress(OSError):  # it may have ended meanwhile
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    assert found, "the training ended before it could be disturbed"
    return found


def must_equal(whole: Path, folder: Path) -> None:
    for name in ("last_refcoco.pth", "best_refcoco.pth"):
        assert differences(whole / name, folder / name) == []


def test_restarted_processes_use_new_addresses(tmp_path: Path) -> None:
    """The launcher's store keeps the addresses of processes that are gone; whether one is tried is chance."""
    meeting = f"--master_port {free_port()} --max-restarts {restart_worker.RESTARTS} {FORKING}"
    output = tmp_path / "output.txt"
    launcher = start_launcher(2, ROOT / "tests" / "restart_worker.py", output=output, launcher=meeting)
    try:
        assert launcher.wait(timeout=120) == 0, output.read_text()
    finally:
        kill_by_force(launcher)
    assert "2 met again" in output.read_text()


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_worker_comes_back(sample_root: Path, whole: Path, tmp_path: Path, nodes: int) -> None:
    """Two processes under one launcher, or one under each of two, as on two machines; the first starts new Pythons."""
    c10d = f"--nnodes 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{free_port()}"
    address = c10d if nodes == 2 else f"--master_port {free_port()}"
    meeting = f"{address} --max-restarts 10"  # workers of a busy machine may miss a meeting
    flags = training_flags(sample_root, tmp_path, *FLAGS, "--resume", "auto")
    # Each round of meeting gets a store of its own, as docs/training.md tells those with several machines.
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if nodes > 1 else {}
    output = tmp_path / "output.txt"
    launchers = [
        start_launcher(2 // nodes, ROOT / "train.py", *flags, output=output, launcher=f"{meeting} {how}", **own_store)
        for how in ("", FORKING)[-nodes:]
    ]
    try:
        wait_until(lambda: (tmp_path / "last_refcoco.pth").exists())
        os.kill(workers(launchers[-1])[-1], signal.SIGKILL)
        assert [launcher.wait(timeout=300) for launcher in launchers] == [0] * nodes, output.read_text()
    finally:
        for launcher in launchers:
            kill_by_force(launcher)
    assert "resumed" in output.read_text()
    must_equal(whole, tmp_path)
