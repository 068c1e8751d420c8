"""The tasks of one `srun` train as one, by SLURM's variables alone."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import utils
from tests import warm
from tests.helpers import free_port, naming
from tests.training_runs import ROOT, differences, environment, launch, training_flags

TASK = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_a_task_finds_its_place_in_the_world() -> None:
    world = utils.slurm_world(TASK)
    port = int(world.pop("MASTER_PORT"))
    assert world == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "gpu07"}
    assert 1024 < port < 32768, "neither a service's nor one that the system gives away"


@pytest.mark.parametrize("other", [{"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "4243"}])
def test_two_steps_on_one_node_meet_at_different_ports(other: dict[str, str]) -> None:
    assert utils.slurm_world(TASK)["MASTER_PORT"] != utils.slurm_world(TASK | other)["MASTER_PORT"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu3", "gpu3"),
        ("gpu3,gpu5", "gpu3"),
        ("gpu[07-12,20],login1", "gpu07"),
        ("gpu[5,9]", "gpu5"),
        ("rack[1-2]-gpu[04-05].cluster", "rack1-gpu04.cluster"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_they_meet_on_the_first_node(nodes: str, first: str) -> None:
    assert utils.slurm_world(TASK | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_the_users_own_address_and_port_come_first() -> None:
    own = {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}
    for variables in (TASK, {name: value for name, value in TASK.items() if "NODELIST" not in name}):
        world = utils.slurm_world(variables | own)
        assert (world["MASTER_ADDR"], world["MASTER_PORT"]) == ("10.0.0.7", "29500")


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"])
def test_incomplete_variables_of_slurm_are_refused_for_several_tasks(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in TASK.items() if name != missing})
    with naming("SLURM_STEP_NUM_TASKS", "torchrun"):
        utils.start_processes(torch.device("cpu"))


@pytest.mark.parametrize("count", ["1", "", "x"])
def test_a_step_of_one_task_is_no_world(count: str) -> None:
    assert utils.slurm_world(TASK | {"SLURM_STEP_NUM_TASKS": count}) == {}


@pytest.mark.parametrize(("shown", "own"), [(1, 0), (4, 3)])
def test_a_task_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, shown: int, own: int) -> None:
    """SLURM shows each task all GPUs of its node, or, with --gpus-per-task, its own alone."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    assert utils._own_gpu(3, bound=True) == torch.device("cuda", own)


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with naming("--ntasks-per-node", "--nproc_per_node", 2):
        utils._own_gpu(3, bound=True)


def tasks(count: int) -> list[dict[str, str]]:
    """Return the environments of the tasks of a step on this machine, as SLURM sets them."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in environment().items() if name not in names}
    step = {"SLURM_STEP_NODELIST": "127.0.0.[1-2]", "MASTER_PORT": str(free_port())}
    step |= {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_NTASKS": str(count)}
    return [clean | step | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(count)]


def srun(count: int, *words: object) -> CompletedProcess[str]:
    return warm.run(words, tasks(count), timeout=300)


@pytest.mark.slow  # trains twice
def test_two_tasks_train_as_two_processes_of_a_launcher(sample_root: Path, tmp_path: Path) -> None:
    """One training, not two into one folder; equal to the last bit."""
    flags = ["-b", 4, "--workers", 0, "--epochs", 1, "--limit-train", 16, "--limit-val", 6]
    for name, run in (("launched", launch), ("srun", srun)):
        outcome = run(2, ROOT / "train.py", *training_flags(sample_root, tmp_path / name, *flags))
        assert outcome.returncode == 0, outcome.stderr
        assert "8 = 4 per process × 2 processes" in outcome.stdout
        assert outcome.stdout.count("P@0.5") == 1
    assert differences(tmp_path / "launched" / "last_refcoco.pth", tmp_path / "srun" / "last_refcoco.pth") == []


MEET = """
import os, sys, torch, utils
if os.environ["SLURM_PROCID"] == "1":
    sys.argv.append("--other")
utils.run(lambda: utils.start_processes(torch.device("cpu")))
"""


def test_tasks_with_different_flags_are_no_parts_of_one_training() -> None:
    outcome = srun(2, "-c", MEET)
    assert outcome.returncode == 1
    assert outcome.stderr.count("unset SLURM_STEP_NUM_TASKS") == 2, "each task says it"


ALONE = """
from datetime import timedelta
import torch, utils
utils.PATIENCE = timedelta(seconds=1)
utils.run(lambda: utils.start_processes(torch.device("cpu")))
"""


@pytest.mark.parametrize("number", [0, 1])
def test_a_task_does_not_wait_for_ever_for_others(number: int) -> None:
    task = tasks(2)[number]
    outcome = warm.run(["-c", ALONE], [task], timeout=60)
    assert outcome.returncode == 1
    line = outcome.stderr.splitlines()[-1]  # after PyTorch's own
    assert line.startswith("error: the 2 processes did not meet at 127.0.0.1:" + task["MASTER_PORT"])
