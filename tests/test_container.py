"""The Dockerfile: it says what it should, its image holds what commands need, and Docker, if it is there, builds it."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.commands import parse

ROOT = Path(__file__).parent.parent
KNOWN = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "CMD"}
SCRIPTS = ("train", "test", "predict", "app")


@cache
def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile and what follows them, lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    logical = text.replace("\\\n", " ").splitlines()
    return [(name, re.sub(r" +", " ", rest)) for name, _, rest in (line.partition(" ") for line in logical) if name]


def values(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


@cache
def ignored() -> list[str]:
    """Return the patterns of .dockerignore."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_copied(path: str) -> bool:
    """Tell whether Docker hands a path to the image: the last pattern decides that fits it or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    copied = True
    for pattern in ignored():
        kept, name = pattern.startswith("!"), pattern.removeprefix("!")
        deep = name.startswith("**/")
        places = parts if deep else above
        if any(fnmatch.fnmatchcase(place, name.removeprefix("**/")) and _is_as_deep(place, name) for place in places):
            copied = kept
    return copied


def _is_as_deep(place: str, pattern: str) -> bool:
    """Tell whether a match is Docker's, whose * goes over no slash."""
    return pattern.startswith("**/") or place.count("/") == pattern.count("/")


def test_every_instruction_is_one_of_dockers() -> None:
    assert {name for name, _ in instructions()} == KNOWN
    assert instructions()[0][0] == "ARG" and instructions()[1][0] == "FROM"
    for command in values("RUN"):
        assert subprocess.run(["sh", "-n", "-c", command], capture_output=True, check=False).returncode == 0, command


def test_the_python_is_a_supported_one() -> None:
    (image,), default = values("FROM"), values("ARG")[0].removeprefix("PYTHON=")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert image == "python:${PYTHON}-slim"
    assert default in jobs["lock"]["strategy"]["matrix"]["python"]


def test_installed_packages_are_locked_and_leave_no_cache() -> None:
    (line,) = [command for command in values("RUN") if "pip install" in command]
    assert line == "pip install --no-cache-dir --constraint requirements.lock --requirement requirements.txt"
    (packages,) = [command for command in values("RUN") if "apt-get" in command]
    assert "--no-install-recommends" in packages and "rm -rf /var/lib/apt/lists/*" in packages


def test_nothing_of_the_code_runs_as_root() -> None:
    """A number, so that a cluster can see it; the last one counts."""
    user = values("USER")[-1]
    assert user.isdecimal() and int(user) > 0
    assert [name for name, _ in instructions()][-2:] == ["USER", "CMD"]


def test_its_command_is_understood() -> None:
    words = json.loads(values("CMD")[0])
    with pytest.raises(SystemExit) as ended:  # --help
        parse(" ".join(words))
    assert ended.value.code == 0


def test_files_that_are_copied_exist() -> None:
    for line in values("COPY"):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() and (source == "." or is_copied(source)) for source in sources)


OUTSIDE = """
.git/config .venv/bin/python refer/data/refcoco/refs(unc).p checkpoints/last_refcoco.pth pretrained/swin.pth demo/run/x
runs/a lib/__pycache__/files.pyc lib/network/__pycache__/x.pyc tests/conftest.py
"""


@pytest.mark.parametrize("path", OUTSIDE.split())
def test_data_weights_and_runs_stay_outside(path: str) -> None:
    assert not is_copied(path)


def image_files() -> list[Path]:
    """Return the files of the checkout that the image gets."""
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and ".git" not in path.parts[-3:]]
    return [path for path in files if is_copied(path.as_posix())]


@pytest.mark.slow  # imports all scripts anew
def test_all_that_scripts_import_is_inside() -> None:
    """And the pages and pictures in the folders of the code."""
    inside = set(image_files())
    todo, seen = [Path(f"{name}.py") for name in SCRIPTS], set()
    while todo:
        path = todo.pop()
        assert path in inside, path
        seen.add(path)
        todo += [found for found in _imported(path) if found not in seen]
    assert len(seen) > 50
    assert {Path("lib/evaluation/page.html"), Path("checkpoints/sample_nano.safetensors")} <= inside
    assert sum((ROOT / path).stat().st_size for path in inside) < 20_000_000


def _imported(path: Path) -> list[Path]:
    """Return the files of this project that a file imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    paths = [Path(*name.split(".")) for name in names]
    files = [file for one in paths for file in (one.with_suffix(".py"), one / "__init__.py")]
    return [file for file in files if (ROOT / file).is_file()]


# ---------------------------------------------------------------- with Docker


def docker_answers() -> bool:
    """Tell whether images can be built here."""
    if not shutil.which("docker"):
        return False
    asked = subprocess.run(["docker", "info", "-f", "{{.ServerVersion}}"], capture_output=True, check=False)
    return asked.returncode == 0


@pytest.mark.slow  # downloads gigabytes
def test_the_image_is_built_and_finds_a_drawn_shape(tmp_path: Path) -> None:
    if not docker_answers():
        pytest.skip("needs Docker")
    subprocess.run(["docker", "build", "-q", "-t", "crossvlt-test", ROOT], check=True)
    tmp_path.chmod(0o777)
    run = ["docker", "run", "--rm", "--user", "4321:4321", "--read-only", "--tmpfs", "/tmp", "-v", f"{tmp_path}:/data"]
    code = (
        "python -m data.sample --root /data/set --images 2 && python predict.py --out /data/out --text 'red circle' "
        "--image $(find /data/set -name '*.jpg' | head -n 1)"
    )
    subprocess.run([*run, "crossvlt-test", "sh", "-c", code], check=True)
    assert list((tmp_path / "out").rglob("*.png"))
