"""A forked script does what it would do in a new Python."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.helpers import mostly_slow
from tests.training_runs import environment, training_flags

ENDS = {
    "well": "print('done')",
    "code": "import sys; print('so far'); sys.exit(3)",
    "message": "import sys; sys.exit('a reason')",
    "error": "print('so far'); raise ValueError('a reason')",
    "at once": "import os; print('so far', flush=True); os._exit(4)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "asked": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "last words": "import atexit; atexit.register(print, 'bye')",
}
LOOKS = {
    "words": "import sys; print(sys.argv)",
    "folder": "import os; print(os.getcwd())",
    "environment": "import os; print(sorted(os.environ.items()))",
    "interrupts": "import signal; print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))",
    "start method": "import multiprocessing; print(multiprocessing.get_start_method())",
    "name": "print(__name__)",
    "output": "import sys; print(sys.stdout.encoding, sys.stdout.line_buffering, 'größer')",
    "children": "import multiprocessing; print(multiprocessing.active_children())",
}


@pytest.mark.parametrize("code", [*ENDS.values(), *LOOKS.values()], ids=[*ENDS, *LOOKS])
@pytest.mark.parametrize("kind", mostly_slow(["-c", "file"], always=["-c"]))
def test_a_forked_script_does_what_a_new_python_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    words = ["-c", code, "a", "b c"] if kind == "-c" else [str(tmp_path / "script.py"), "a", "b c"]
    own = environment() | {"OWN": "1"}
    new = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=own)
    forked = warm.run(words, [own], timeout=60)
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_scripts_of_several_processes_draw_other_numbers() -> None:
    """Except for torch, which starts with the same number in every Python."""
    code = "import random, numpy, torch; print(random.random(), numpy.random.random(), torch.initial_seed())"
    drawn = [warm.run(["-c", code], [environment()], timeout=60).stdout.split() for _ in range(2)]
    assert drawn[0][0] != drawn[1][0]
    assert drawn[0][1] != drawn[1][1]
    assert drawn[0][2] == drawn[1][2]


def test_a_script_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run(["-c", "import time; time.sleep(60)"], [environment()], timeout=0.5)
    assert multiprocessing.active_children() == []


# Trains, and tells what had to be imported for it and how many threads its server has.
TRAINING = """
import os, sys
before = set(sys.modules)
threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
import train
train.main(sys.argv[1:])
print(threads, *sorted(set(sys.modules) - before))
"""
HEAVY = {"torch._dynamo", "transformers", "timm", "matplotlib", "tensorboard", "skimage", "pandas", "scipy", "sklearn"}
HEAVY |= {"h5py", "jinja2"}


@pytest.mark.slow  # trains
def test_the_server_has_imported_what_a_training_needs(sample_root: Path, tmp_path: Path) -> None:
    """Or every script would take seconds again. The server has one thread, or forks of it could hang."""
    flags = training_flags(sample_root, tmp_path, "-b", 4, "--epochs", 1, "--limit-train", 4, "--limit-val", 1)
    outcome = warm.run(["-c", TRAINING, *flags], [environment()], timeout=120)
    threads, *imported = outcome.stdout.splitlines()[-1].split()
    assert threads == "1"
    assert HEAVY & set(imported) == set()
