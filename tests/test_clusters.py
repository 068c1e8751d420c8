"""The batch scripts of docs/clusters/ are valid for bash and train.py, and run with a stand-in for SLURM."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lib.options import check_flags
from tests.commands import lines, parse
from tests.fault_drill import kill_by_force
from tests.helpers import wait_until
from tests.slurm_stand_in import DIRECTIVES, Cluster, directives
from tests.training_runs import ROOT, environment, training_flags

SCRIPTS = sorted((ROOT / "docs" / "clusters").glob("*.sbatch"))
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.stem)
def script(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_there_is_one_with_torchrun_and_one_without() -> None:
    assert [script.stem for script in SCRIPTS] == ["srun", "torchrun"]


def test_bash_understands_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False).stderr == ""


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False).stdout == ""


def test_sbatch_understands_its_head(script: Path) -> None:
    found = directives(script)
    assert found.keys() <= DIRECTIVES.keys()
    assert len(found) == script.read_text().count("\n#SBATCH "), "all of them come before the first command"
    assert re.fullmatch(r"B:USR1@\d+", found["signal"]), "to the script alone, which passes it on"
    assert {"requeue", "time"} <= found.keys()
    assert found["open-mode"] == "append"


def test_train_understands_its_flags(script: Path) -> None:
    text = script.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^srun .*train\.py.*(?= &$)", text, re.M)
    words = re.sub(r"^srun (--\S+ )*", "", line).replace('"$@"', "--dataset refcoco --output-dir runs/a")
    command = parse(re.sub(r"\$\(\(.*?\)\)", "29500", words).replace('"${SLURM_GPUS_ON_NODE:-1}"', "2"))
    check_flags(command.args)
    assert command.args.resume == "auto"
    assert command.args.save_every > 0


def test_commands_started_through_other_programs_are_understood() -> None:
    """`sbatch … SCRIPT FLAGS` gives the flags to train.py; `docker run … IMAGE COMMAND` runs a command."""
    found = list(lines((ROOT / "docs" / "clusters.md").read_text()))
    batches = [shlex.join(words) for words in found if words[0] == "sbatch"]
    runs = [shlex.join(words) for words in found if words[:2] == ["docker", "run"]]
    assert batches and runs
    for line in batches:
        script, flags = re.findall(r"(\S+\.sbatch)(.*)", line)[0]
        assert ROOT / script in SCRIPTS
        check_flags(parse(f"python train.py{flags}").args)
    for line in runs:
        parse(line[line.index("python ") :])


# ---------------------------------------------------------------- what the scripts do about signals and ends

# A training of bash: says what train.py says, and ends as it and torchrun do.
TRAINING = """
trap 'sleep 0.3; echo "stopped by SIGUSR1: saved, resume with --resume x"; exit {code}' USR1
trap 'echo "stopped by SIGTERM: saved, resume with --resume x"; exit {code}' TERM
echo begun "$@"
while true; do {then}; done
"""


@contextmanager
def running(script: Path, folder: Path, then: str, code: int = 0) -> Iterator[tuple[Cluster, subprocess.Popen[str]]]:
    """Start a script over such trainings; then: what they do after their start."""
    cluster = Cluster(folder / "cluster")
    for name in ("python", "torchrun"):
        cluster.add(name, TRAINING.format(then=then, code=code))
    variables = environment() | {"SLURM_RESTART_COUNT": "2"}
    process = cluster.sbatch(script, "--dataset", "refcoco", environment=variables, cwd=folder, nodes=2)
    try:
        yield cluster, process
    finally:
        kill_by_force(process)


def text(folder: Path) -> str:
    """Return what the trainings of the third start said."""
    return "".join(file.read_text() for file in folder.glob("slurm-*/start-2/*.txt"))


def n_tasks(script: Path) -> int:
    return 2 * int(directives(script)["ntasks-per-node"])


WAITING = "sleep 0.05"


@pytest.mark.parametrize("code", [0, 1], ids=["as train.py", "as torchrun"])
def test_before_the_time_limit_it_saves_and_queues_itself_again(script: Path, tmp_path: Path, code: int) -> None:
    with running(script, tmp_path, WAITING, code) as (cluster, process):
        wait_until(lambda: text(tmp_path).count("begun") == n_tasks(script), seconds=30)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=30) == code
        assert text(tmp_path).count("stopped by SIGUSR1") == n_tasks(script), "every training saved"
        assert cluster.asked.read_text().split()[0] == "requeue"


def test_a_training_that_is_stopped_for_another_job_is_queued_again(script: Path, tmp_path: Path) -> None:
    """Preemption signals the tasks, not the script."""
    with running(script, tmp_path, "kill -TERM $$") as (cluster, process):
        assert process.wait(timeout=30) == 0
        assert cluster.asked.read_text().split()[0] == "requeue"


def test_a_cancelled_job_is_not_queued_again(script: Path, tmp_path: Path) -> None:
    """scancel signals the tasks and the script."""
    both = f"kill -TERM $STAND_IN_SCRIPT $$; {WAITING}"
    with running(script, tmp_path, both) as (cluster, process):
        assert process.wait(timeout=30) == 0
        assert cluster.asked.read_text() == ""


@pytest.mark.parametrize("code", [0, 3])
def test_a_training_that_ended_by_itself_is_not_queued_again(script: Path, tmp_path: Path, code: int) -> None:
    with running(script, tmp_path, f"exit {code}") as (cluster, process):
        assert process.wait(timeout=30) == code
        assert cluster.asked.read_text() == ""


# ---------------------------------------------------------------- real trainings


@pytest.mark.slow  # starts Python anew for every process
def test_two_nodes_train_as_one_and_save_before_the_limit(script: Path, sample_root: Path, tmp_path: Path) -> None:
    cluster, run = Cluster(tmp_path / "cluster"), tmp_path / "run"
    flags = training_flags(sample_root, run, "-b", 3, "--epochs", 500, "--limit-val", 6, "--workers", 0)
    process = cluster.sbatch(
        script, *flags, environment=environment(), cwd=ROOT, nodes=2, ntasks_per_node=1, gpus_per_node=1
    )
    logs = ROOT / f"slurm-{cluster.job}"
    log = run / "log_refcoco.jsonl"
    try:
        wait_until(lambda: (log.exists() and "loss" in log.read_text()) or process.poll() is not None)
        process.send_signal(signal.SIGUSR1)
        process.wait(timeout=60)
        said = "".join(file.read_text() for file in logs.rglob("*.txt"))
        assert "6 = 3 per process × 2 processes" in said
        assert said.count("stopped by SIGUSR1: saved") == 1
        assert cluster.asked.read_text() == f"requeue {cluster.job}\n"
    finally:
        kill_by_force(process)
        shutil.rmtree(logs, ignore_errors=True)
