"""Run scripts in processes that need not import the stack first.

A new Python takes many seconds for torch and all that builds on it. One server that has imported it forks a process
for every script in hundredths of a second. A script cannot tell: it has its own arguments, environment, folder, output,
signals and exit code, generators seeded as in a new Python, and one thread per process. Two things are not as in
a new Python: modules were imported in the server's environment, and all processes order their sets alike. So some
tests start Python itself: those of launchers, of imports, and of variables that a library reads when it is imported.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from unittest.mock import patch

import numpy as np

# Modules that the scripts import at their start, and later in functions; `test_warm.py` names missing ones.
LATER = [
    "torch._dynamo",
    "data.cache",
    "jinja2",
    "matplotlib",
]
PRELOAD = ("train", "test", "tests.warm", "torch.utils.tensorboard", *LATER)

# A fork has no thread but the one that forked, and would wait for ever for what others hold: the server has no others.
SERVER = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
SERVER["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: no script asks the network


class Script:
    """A script that runs in a process of its own, with the interface of `subprocess.Popen`."""

    def __init__(self, words: Sequence[object], environment: Mapping[str, str], output: Path, errors: Path) -> None:
        """Start it in the current folder.

        words: file and arguments; or "-c", code and arguments. output, errors: files that its output is added to.
        """
        for path in (output, errors):
            path.touch()
        forkserver.set_forkserver_preload(list(PRELOAD))
        arguments = (list(map(str, words)), dict(environment), str(output), str(errors))
        self._process = multiprocessing.get_context("forkserver").Process(target=_become, args=arguments)
        with patch.dict(os.environ, SERVER):  # if this is the first script, this also starts the server
            self._process.start()
        assert self._process.pid is not None  # it has been started
        self.pid, self.output = self._process.pid, output

    def poll(self) -> int | None:
        """Return the exit code; minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit code after its end. Raises `TimeoutExpired` if it takes longer than that (seconds)."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise TimeoutExpired(str(self._process), timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it by force, unless it has ended."""
        self.send_signal(signal.SIGKILL)
        self._process.join()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def run(words: Sequence[object], environments: Sequence[Mapping[str, str]], timeout: float) -> CompletedProcess[str]:
    """Run a script to its end, in one process for each environment, as `subprocess.run` does; outputs are joined.

    timeout: seconds, of all together; after them the processes are killed, and `subprocess.TimeoutExpired` is raised.
    """
    end = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("output", "errors")]
        scripts = [Script(words, environment, *files) for environment in environments]
        try:
            codes = [script.wait(end - time.monotonic()) for script in scripts]
        finally:
            for script in scripts:
                script.kill()
        return CompletedProcess([*map(str, words)], next(filter(None, codes), 0), *(file.read_text() for file in files))


def _become(words: list[str], environment: dict[str, str], output: str, errors: str) -> None:
    """Run a script in this process as a new Python would, after the fork."""
    gc.freeze()  # a look at all that was imported would also copy its memory, which is the server's
    multiprocessing.set_start_method(None, force=True)  # the default, for what the script starts
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, output), (2, errors)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    coding = sys.stdout.encoding
    sys.stdout = open(1, "w", encoding=coding, closefd=False)  # noqa: SIM115 (they stay open to the end)
    sys.stderr = open(2, "w", 1, coding, "backslashreplace", closefd=False)  # noqa: SIM115
    np.random.seed()  # random and torch need nothing: one is seeded anew in a fork, the other starts with a constant
    try:
        _run(words)
    finally:
        atexit._run_exitfuncs()


def _run(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
