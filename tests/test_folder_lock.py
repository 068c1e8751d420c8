"""Two trainings never write into one folder, and a dead one keeps nobody out."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import train
from errors import UserError
from lib.training.folder_lock import FolderLock
from lib.training.run_files import RunFiles
from tests.training_runs import training_flags


@contextmanager
def another_process(prepare: Callable[[], object]) -> Iterator[int]:
    """Fork a process that calls `prepare` and then waits to be killed; gives its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = prepare()
            os.write(writer, b"!")
            signal.pause()
            del kept
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"!"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_training_is_refused_by_host_and_process_until_the_first_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        another_process(lambda: FolderLock(path, "--output-dir")) as number,
        pytest.raises(UserError, match=rf"--output-dir {tmp_path}.* process {number} on {platform.node()} "),
    ):
        FolderLock(path, "--output-dir")
    FolderLock(path, "--output-dir").release()  # though it was killed, and could give up nothing
    assert str(os.getpid()) in path.read_text()


def test_workers_do_not_keep_the_folder_of_a_training_that_ended(tmp_path: Path) -> None:
    """They are forked from it, and may live on for a moment."""
    path = tmp_path / "lock"
    ours = FolderLock(path, "--output-dir")
    with another_process(lambda: None):
        ours.release()
        with another_process(lambda: FolderLock(path, "--output-dir")):
            pass


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    FolderLock(tmp_path / "lock", "--output-dir").release()
    assert "No locks available" in capsys.readouterr().out


def test_an_unwritable_lock_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"--output-dir: .*lock cannot be opened \(Permission denied\)"):
        FolderLock(tmp_path / "lock", "--output-dir")


@pytest.mark.parametrize("resume", ["", "auto"])
def test_a_refused_start_leaves_what_the_running_training_just_writes(tmp_path: Path, resume: str) -> None:
    (tmp_path / ".last_refcoco.pth.17.0a1b2c3d.tmp").write_bytes(b"half a state")
    (tmp_path / "last_refcoco.pth").write_bytes(b"damaged")
    (tmp_path / "log_refcoco.jsonl").write_text("{}\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with another_process(lambda: FolderLock(RunFiles(tmp_path, "refcoco").lock, "--output-dir")):
        with pytest.raises(UserError, match="is in use"):
            RunFiles(tmp_path, "refcoco").open(resume, overwrite=True)
        lock = RunFiles(tmp_path, "refcoco").lock.name
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != lock} == before


def test_another_data_set_may_train_in_the_same_folder(tmp_path: Path) -> None:
    with another_process(lambda: FolderLock(RunFiles(tmp_path, "refcoco").lock, "--output-dir")):
        files = RunFiles(tmp_path, "refcocog")
        assert files.open() is None
        files.close()


def test_a_training_that_ends_before_its_first_step_lets_its_folder_go(tmp_path: Path, sample_root: Path) -> None:
    missing = ["--pretrained_swin_weights", str(tmp_path / "missing.pth")]
    with pytest.raises(UserError, match="--pretrained_swin_weights"):
        train.main([*training_flags(sample_root, tmp_path / "run"), *missing])
    lock = tmp_path / "run" / ".lock_refcoco"
    assert lock.exists()
    with another_process(lambda: FolderLock(lock, "--output-dir")):
        pass
