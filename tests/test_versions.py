"""The lock file, and the command that tests other versions than those in it."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import versions

ROOT = Path(__file__).parent.parent
PINNED_PYTHONS = ("3.11", "3.12")


def requirements(name: str) -> list[Requirement]:
    """Return what a requirements file names itself."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def locked(python: str) -> dict[str, list[str]]:
    """Return the locked versions on Linux by package, for a version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": "linux"}
    pins = defaultdict(list)
    for requirement in requirements("requirements.lock"):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==", requirement
            pins[plain(requirement.name)].append(pin.version)
    return pins


def plain(name: str) -> str:
    """Return a package's name in its canonical spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", PINNED_PYTHONS)
def test_the_lock_holds_one_admitted_version_of_every_requirement(python: str) -> None:
    pins = locked(python)
    assert not {name: found for name, found in pins.items() if len(found) != 1}
    for file in ("requirements.txt", "requirements-test.txt", "requirements-web.txt"):
        for requirement in requirements(file):
            (pin,) = pins[plain(requirement.name)]
            assert requirement.specifier.contains(pin), requirement


def test_oldest_supported_versions_are_the_lower_bounds() -> None:
    bounds = {plain(requirement.name): str(requirement.specifier) for requirement in requirements("requirements.txt")}
    assert bounds["torch"] == ">=2.11"
    assert bounds["transformers"] == ">=5.17"
    assert set(versions.COLUMNS) <= bounds.keys()


def test_this_python_runs_one_of_the_sets() -> None:
    """The tests run on what the requirements admit, whichever set that is."""
    for requirement in requirements("requirements.txt"):
        assert Version(version(requirement.name)) in requirement.specifier, requirement


@pytest.mark.slow  # starts a suite
def test_a_failing_set_is_counted_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No environments are made: this Python replaces theirs, and pytest really runs."""
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\ndef test_one(): pass\ndef test_two(): assert False\n@pytest.mark.skip\ndef test_three(): pass\n"
    )
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(versions, "install", lambda *_, **__: python)
    with pytest.raises(SystemExit) as end:
        versions.main(["--only", "oldest", "--tests", str(tests)])
    assert end.value.code == 1
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| oldest | 3.")
    assert "| 1 passed, 1 failed, 1 skipped |" in row


def test_the_lock_is_made_by_the_command_that_it_names() -> None:
    first = (ROOT / "requirements.lock").read_text().splitlines()[1]
    assert first == "#    make lock"
    (rule,) = re.findall(r"^lock:.*?\n\n", (ROOT / "Makefile").read_text(), re.M | re.S)
    assert "requirements.lock" in rule
