"""All tests marked `cuda`, each recorded as soon as it has ended."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu.steps import Sheet, Task
from errors import UserError

# The files with such tests: collecting all files would take as long as running the tests.
FILES = (
    "tests/test_cuda.py",
    "tests/test_cuda_placement.py",
    "tests/test_fast_paths.py",
    "tests/test_options.py",
    "tests/test_precision.py",
    "tests/test_reference.py",
)
QUICK = ("tests/test_cuda.py", "-m", "not cuda and not slow", "-k", "full_memory or operators")
MOST_WORKERS = 6  # each compiles with several processes of its own
MESSAGE_LENGTH = 500


class Notes:
    """A pytest plugin that records the outcome of each test."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet
        self.failed = 0

    def pytest_collection_finish(self, session: Any) -> None:
        """Record the number of tests."""
        if session.items:
            self.sheet.add(n_tests=len(session.items))

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Record the number of tests if pytest-xdist collects them."""
        self.sheet.add(n_tests=len(ids))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record a test after it ran or failed to run."""
        if report.when != "call" and report.passed:
            return
        self.failed += report.failed
        note = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 1)}
        self.sheet.add(tests=[note | ({} if report.passed else {"message": _message(report)})])


# What `pytest.hookimpl(optionalhook=True)` writes: without pytest-xdist there is no such hook.
Notes.pytest_xdist_node_collection_finished.pytest_impl = {"optionalhook": True}  # type: ignore[attr-defined]


def run(task: Task) -> None:
    """Run the tests. Raises UserError if one failed, none ran, or pytest is missing."""
    if find_spec("pytest") is None:
        raise UserError("pytest is missing (requirements-test.txt): the tests on the GPU were left out")
    import pytest

    flags = list(QUICK) if task.quick else [*FILES, "-m", "cuda", *_several()]
    notes = Notes(task.sheet)
    code = pytest.main([*flags, "-p", "no:cacheprovider"], plugins=[notes])
    if notes.failed:
        raise UserError(f"{notes.failed} tests failed")
    if code:
        raise UserError(f"pytest ended with exit code {int(code)}")


def _several() -> list[str]:
    """Return the flags for running tests in parallel, if pytest-xdist is installed."""
    if find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // 2))), "--dist", "load"]


def _message(report: Any) -> str:
    """Return the short message of a failed or skipped test."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return " ".join(text.split())[:MESSAGE_LENGTH]
