"""What the project's own papers say of it, held to each other."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.skipif(not (shutil.which("make") and any(Distribution.discover(name="pip"))), reason="needs make and pip")
def test_uv_is_told_the_index_that_pip_is_told(tmp_path: Path) -> None:
    """By the environment, or else by a file's section [install], or else by [global]; nothing if pip is told none."""
    own, other = "https://packages.example/simple", "https://other.example/simple?a=b"
    general = f"[global]\nindex-url = {own}\nextra-index-url = {own}/more\n"
    (tmp_path / "pip.conf").write_text(general)
    (tmp_path / "install.conf").write_text(f"{general}[install]\nindex-url = {own}/install\n")
    (tmp_path / "none.conf").touch()

    def told(file: str, **more: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name != "PIP_INDEX_URL"}
        rule = "--eval=told:; @echo $(PIP_INDEX)"
        line = ["make", "--no-print-directory", rule, "told", f"RUN={sys.executable}"]
        environment = kept | {"PIP_CONFIG_FILE": str(tmp_path / file)} | more
        outcome = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return outcome.stdout.strip()

    assert told("pip.conf") == own
    assert told("install.conf") == f"{own}/install"
    assert told("install.conf", PIP_INDEX_URL=other) == other
    assert told("none.conf") == ""
