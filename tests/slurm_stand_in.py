"""What `sbatch`, `srun` and `scontrol` do for the scripts in docs/clusters/, with processes of this machine.

Put on PATH by `Cluster`: the nodes are loopback addresses, a step's tasks get SLURM's variables, and srun passes on
SIGUSR1 and kills its tasks at SIGTERM, as SLURM's does.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

# The options of sbatch that the examples use, with what SLURM sets in the script for them.
DIRECTIVES = {
    "job-name": "SLURM_JOB_NAME",
    "nodes": "SLURM_JOB_NUM_NODES",
    "ntasks-per-node": "SLURM_NTASKS_PER_NODE",
    "gpus-per-node": "SLURM_GPUS_ON_NODE",
    "cpus-per-task": "SLURM_CPUS_PER_TASK",
    "time": "",
    "signal": "",
    "requeue": "",
    "open-mode": "",
}


def directives(script: Path) -> dict[str, str]:
    """Return the options of sbatch in a script's head; sbatch reads no further than the first command."""
    head = re.split(r"^[^#\n]", script.read_text(), maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", head, re.M))


class Cluster:
    """A machine that plays some nodes."""

    def __init__(self, folder: Path) -> None:
        """folder: of the programs and of what was asked of them."""
        self.asked, self.programs, self.job = folder / "asked.txt", folder / "programs", os.getpid()
        self.programs.mkdir(parents=True)
        self.asked.touch()
        for name in ("srun", "scontrol"):
            self.add(name, f'exec {shlex.quote(sys.executable)} -S {shlex.quote(__file__)} {name} "$@"')

    def add(self, name: str, line: str) -> None:
        """Put a program on PATH: a line of bash."""
        program = self.programs / name
        program.write_text(f"#!/usr/bin/env bash\n{line}\n")
        program.chmod(0o755)

    def sbatch(
        self, script: Path, *flags: object, environment: Mapping[str, str], cwd: Path, **options: object
    ) -> subprocess.Popen[str]:
        """Start a script as the first node of its job does. options: of sbatch, before those in the script."""
        asked = directives(script) | {name.replace("_", "-"): str(value) for name, value in options.items()}
        nodes = int(asked["nodes"])
        job = {DIRECTIVES[name]: value for name, value in asked.items() if DIRECTIVES[name]}
        job |= {"SLURM_JOB_ID": str(self.job), "SLURM_JOB_NODELIST": f"127.0.0.[1-{nodes}]"}
        path = os.pathsep.join([str(self.programs), str(Path(sys.executable).parent), environment["PATH"]])
        return subprocess.Popen(
            ["bash", script, *map(str, flags)],
            env={**environment, **job, "PATH": path, "STAND_IN_ASKED": str(self.asked)},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def scontrol(words: list[str]) -> None:
    """`show hostnames 127.0.0.[1-N]`; everything else is written down."""
    if words[:2] == ["show", "hostnames"]:
        found = re.fullmatch(r"(.*)\[1-(\d+)\]", words[2])
        assert found, words
        print(*(f"{found[1]}{number}" for number in range(1, int(found[2]) + 1)), sep="\n")
    else:
        with open(os.environ["STAND_IN_ASKED"], "a") as file:
            file.write(" ".join(words) + "\n")


def srun(words: list[str]) -> None:
    """Start every task of a step, and end as the first that fails; before the command, options of srun."""
    options = [word for index, word in enumerate(words) if all(one.startswith("--") for one in words[: index + 1])]
    output = next(word.partition("=")[2] for word in options if word.startswith("--output="))
    per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
    count = int(os.environ["SLURM_JOB_NUM_NODES"]) * per_node
    tasks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for task in tasks:
            task.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGKILL)

    signal.signal(signal.SIGUSR1, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    for number in range(count):
        node, local = divmod(number, per_node)
        own = {
            "SLURM_STEP_NUM_TASKS": count,
            "SLURM_STEP_ID": 0,
            "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
            "SLURM_PROCID": number,
            "SLURM_LOCALID": local,
            "STAND_IN_SCRIPT": os.getppid(),
        }
        name = output.replace("%t", str(number)).replace("%n", str(node))
        with open(name, "w") as file:
            environment = os.environ | {variable: str(value) for variable, value in own.items()}
            tasks.append(subprocess.Popen(words[len(options) :], stdout=file, stderr=file, env=environment))
    codes = [task.wait() for task in tasks]
    sys.exit(next((abs(code) for code in codes if code), 0))


if __name__ == "__main__":
    {"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:])
