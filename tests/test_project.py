"""What the project's own papers say of it, held to each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.versions import SETS

ROOT = Path(__file__).parent.parent


def project() -> dict[str, Any]:
    """Return the table `[project]`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def workflow() -> dict[str, Any]:
    """Return what GitHub runs."""
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def test_the_version_is_in_one_place_and_the_changelog_begins_with_it() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest and newest[1] == project()["version"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_licence_is_that_of_the_file() -> None:
    assert (ROOT / "LICENSE").read_text().startswith(f"{project()['license']} License\n")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == project()["license"]


def test_continuous_integration_runs_every_supported_python_and_set_of_versions() -> None:
    jobs = workflow()["jobs"]
    pythons = jobs["lock"]["strategy"]["matrix"]["python"]
    assert f"Python {' or '.join(pythons)}" in (ROOT / "README.md").read_text()
    assert project()["requires-python"] == f">={pythons[0]}"
    assert {*jobs["versions"]["strategy"]["matrix"]["versions"], "lock"} == SETS.keys()


def test_commands_of_hooks_and_workflow_exist() -> None:
    """Commands of the repository, by path; targets of make; and the tools that `make test` installs."""
    commands = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    (hooks,) = (repo["hooks"] for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"])
    tools = [shlex.split(hook["entry"])[0] for hook in hooks if hook["language"] == "system"]
    assert ".ci/run" in commands
    assert (ROOT / ".ci" / "run").is_file()
    assert {shlex.split(command)[1] for command in commands if command.startswith("make ")} <= {*targets}
    pinned = re.findall(r"^(\w+)==", (ROOT / "requirements-test.txt").read_text(), re.M)
    assert {Path(tool).relative_to(".venv/bin").name for tool in tools} == {*pinned}
