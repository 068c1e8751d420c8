"""What has its cause outside of the program, a launcher, a full /dev/shm, a killed worker, ends with one line."""

from __future__ import annotations

import errno
import multiprocessing.synchronize
import os
import resource
import signal
import sys

import pytest
import torch

import utils
from errors import UserError


@pytest.mark.parametrize("name", utils.TASK_COUNTS)
def test_one_of_several_tasks_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=rf"2 tasks \({name}\).*torchrun"):
        utils.start_processes(torch.device("cpu"))


@pytest.mark.parametrize("count", ["1", "", "x"])
def test_a_single_task_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", count)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of a job whose script runs it once
    assert utils.start_processes(torch.device("cpu")) == torch.device("cpu")


# As PyTorch says it.
SAID = {
    "unable to allocate shared memory(shm) for file </torch_17_5_1>: No space left on device (28)": "/dev/shm",
    "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that …": "/dev/shm",
    "DataLoader worker (pid 5) is killed by signal: Killed. ": "memory is full",
    "DataLoader worker (pid(s) 5, 6) exited unexpectedly": "memory is full",
    "Failed to find C compiler. Please specify via CC environment variable or set …": "C compiler",
    "ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000": "same GPU",
    "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx": "C++ compiler",
}


@pytest.mark.parametrize("said", SAID)
def test_its_cause_and_remedy_are_one_line(capsys: pytest.CaptureFixture[str], said: str) -> None:
    def fail() -> None:
        raise RuntimeError(said)

    with pytest.raises(SystemExit) as ended:
        utils.run(fail)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert line.startswith("error: ")
    assert SAID[said] in line


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.ENOSYS, errno.EACCES])
def test_missing_shared_memory_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reason: int
) -> None:
    """The system names no file then."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "_make_name", staticmethod(refuse))
    loader = torch.utils.data.DataLoader(Numbers(), num_workers=1)
    with pytest.raises(SystemExit):
        utils.run(lambda: [None for _ in loader] and None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "/dev/shm" in line and "--workers 0" in line


def test_a_training_may_open_as_many_files_as_the_system_lets_it() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, before[1]), before[1]))
        utils.start_processes(torch.device("cpu"))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(before[1], utils.MANY_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_other_errors_keep_their_traceback() -> None:
    def fail() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        utils.run(fail)


def test_stopped_work_has_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise utils.Stopped("stopped by SIGTERM: nothing is changed")

    utils.run(stop)
    assert capsys.readouterr().out.splitlines() == ["stopped by SIGTERM: nothing is changed"]


class Numbers(torch.utils.data.Dataset[torch.Tensor]):
    """Whose worker is killed at its first number, as the system does for want of memory."""

    def __getitem__(self, number: int) -> torch.Tensor:
        signal.raise_signal(signal.SIGKILL)
        return torch.zeros(1)

    def __len__(self) -> int:
        return 4


@pytest.mark.skipif(sys.platform != "linux", reason="says it in other words")
@pytest.mark.slow  # waits for workers
def test_a_killed_worker_is_told_from_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    loader = torch.utils.data.DataLoader(Numbers(), num_workers=1)
    with pytest.raises(SystemExit):
        utils.run(lambda: [None for _ in loader] and None)
    assert "killed from outside" in capsys.readouterr().err


@pytest.mark.parametrize("number", utils.STOP_SIGNALS)
def test_every_signal_of_terminals_and_schedulers_asks_for_a_stop(number: signal.Signals) -> None:
    with utils.StopSignal() as stop:
        signal.raise_signal(number)
        assert stop.name == number.name


def test_signals_ignored_by_nohup_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with utils.StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.came
    finally:
        signal.signal(signal.SIGHUP, before)
