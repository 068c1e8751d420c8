"""Run the fast tests on the oldest and the newest supported versions of the libraries, and print a table.

    python -m tests.versions                     # both, each in an environment of its own below .versions/
    python -m tests.versions --only oldest       # one of them
    python -m tests.versions --only lock --python 3.12

oldest: the lower bound of everything that requirements-test.txt names. newest: the newest releases that it admits.
lock: the versions of requirements.lock. uv makes the environments; it downloads about 3 GB each the first time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lib.texts import markdown_table

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".versions"
REQUIREMENTS = ("--requirement", "requirements-test.txt")
# How uv chooses the versions of each environment.
SETS = {
    "oldest": (*REQUIREMENTS, "--resolution", "lowest-direct"),
    "newest": (*REQUIREMENTS, "--resolution", "highest", "--upgrade"),
    "lock": (*REQUIREMENTS, "--constraint", "requirements.lock"),
}
COLUMNS = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow", "h5py", "scikit-image")


class Result(NamedTuple):
    """What the tests did in one environment."""

    name: str
    versions: dict[str, str]  # of Python and of `COLUMNS`
    passed: int
    failed: int
    skipped: int
    seconds: float

    def row(self) -> tuple[str, ...]:
        """Return a row of the table."""
        tests = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return self.name, *self.versions.values(), tests, f"{self.seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Test every set in turn; exit with 1 if a test failed in any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SETS, default=["oldest", "newest"], help="which sets of versions")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="its version")
    parser.add_argument("--fresh", action="store_true", help="make the environments anew")
    parser.add_argument("--tests", nargs="+", default=[], help="files for pytest; default: all, but for slow tests")
    args = parser.parse_args(arguments)
    results = []
    for name in args.only:
        print(f"{name}: installing", flush=True)
        python = install(name, args.python, fresh=args.fresh)
        print(f"{name}: testing", flush=True)
        results.append(run_tests(name, python, args.tests))
        print(table(results), flush=True)
    if any(result.failed or not result.passed for result in results):
        sys.exit(1)


def install(name: str, python: str, *, fresh: bool = False) -> Path:
    """Make an environment with a set of versions, or bring an old one up to date; return its interpreter."""
    folder = ENVIRONMENTS / f"{name}-{python}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    interpreter = folder / "bin" / "python"
    if not interpreter.exists():
        uv("venv", "--python", python, str(folder))
    uv("pip", "install", "--python", str(interpreter), *SETS[name])
    return interpreter


def uv(*arguments: str) -> None:
    """Call uv, quietly; end with its exit code if it fails."""
    code = subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], check=False, cwd=ROOT).returncode
    if code:
        sys.exit(f"error: uv {' '.join(arguments)} failed with exit code {code}")


def run_tests(name: str, python: Path, tests: Sequence[str]) -> Result:
    """Run the fast tests, two files at a time, with an interpreter."""
    report = python.parent.parent / "tests.xml"
    report.unlink(missing_ok=True)
    flags = ["-m", "not slow", "--numprocesses", "2", "--dist", "worksteal", f"--junitxml={report}"]
    # A pytest that runs these tests must not hand its own settings on.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    started = time.monotonic()
    code = subprocess.run(
        [str(python), "-m", "pytest", *flags, *tests], check=False, cwd=ROOT, env=environment
    ).returncode
    seconds = time.monotonic() - started
    if not report.exists():
        sys.exit(f"error: pytest ended with exit code {code} before any test in {python.parent.parent}")
    return Result(name, installed_versions(python), *count(report), seconds)


def installed_versions(python: Path) -> dict[str, str]:
    """Return the versions of Python and of `COLUMNS` in an environment."""
    code = (
        "import platform; from importlib.metadata import version; print(platform.python_version(), "
        f"*map(version, {COLUMNS!r}))"
    )
    output = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(zip(("python", *COLUMNS), output.split(), strict=True))


def count(report: Path) -> tuple[int, int, int]:
    """Return how many tests passed, failed (errors among them) and were skipped, from a JUnit report."""
    suites = [*ET.parse(report).getroot().iter("testsuite")]
    total, failures, errors, skipped = (
        sum(int(suite.get(key, "0")) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    return total - failures - errors - skipped, failures + errors, skipped


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of results."""
    return markdown_table(("versions", "Python", *COLUMNS, "tests", "time"), (result.row() for result in results))


if __name__ == "__main__":
    main()
