"""The repository's own rules: who may import whom, and what importing does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOFS = {"train", "test", "predict", "app", "CrossVLT", "benchmarks", "experiments"}
SOURCES = ("lib", "bert", "data", "refer", "benchmarks", "experiments")
# What each folder must not import. `lib.hub` finds files, `lib.texts` reads lines, `lib.files` and `lib.outputs` write,
# `lib.arguments` parses flags, `lib.contracts` says what is handed on; none knows a network, so others may use them.
# `data.photo` opens images and knows no data set, so everybody may.
FORBIDDEN = {
    "lib": ROOFS | {"bert", "data", "refer"},
    "bert": ROOFS | {"lib", "data", "refer"},
    "data": ROOFS | {"bert", "lib"},
    "refer": ROOFS | {"bert", "lib", "data"},
}
EXCEPTIONS = {
    ("data", "lib.hub"),
    ("data", "lib.contracts"),
    ("data", "lib.arguments"),
    ("data", "lib.files"),
    ("data", "lib.texts"),
    ("refer", "lib.arguments"),
    ("refer", "lib.files"),
    ("refer", "lib.outputs"),
    ("refer", "lib.texts"),
    ("refer", "data.photo"),
    ("lib", "data.photo"),
}


def imports(path: Path) -> list[str]:
    """Return the full names of the modules a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def modules(folder: str) -> list[Path]:
    """Return a folder's modules, those of packages inside it too; `__main__` is a command, which may use everything."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_leaves_never_import_roofs(folder: str) -> None:
    files = modules(folder)
    assert files
    for file in files:
        wrong = [
            name
            for name in imports(file)
            if name.split(".")[0] in FORBIDDEN[folder] and (folder, name) not in EXCEPTIONS
        ]
        assert not wrong, f"{file.name} imports {wrong}"


def test_utils_alone_knows_torch_distributed() -> None:
    for file in [*ROOT.glob("*.py"), *(path for folder in (*FORBIDDEN, "experiments") for path in modules(folder))]:
        if file.name != "utils.py":
            assert not any("distributed" in name for name in imports(file)), file


def calls(path: Path) -> Iterator[ast.Call]:
    """Yield the calls in a file."""
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def test_images_are_opened_in_one_place() -> None:
    """There, every call names the formats that it takes: Pillow knows some that start other programs."""
    sources = [*ROOT.glob("*.py"), *(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))]
    found = {
        path.relative_to(ROOT).as_posix(): {keyword.arg for keyword in call.keywords}
        for path in sources
        for call in calls(path)
        if ast.unparse(call.func).endswith(("Image.open", "imread", "read_image", "decode_image"))
    }
    assert found == {"data/photo.py": {"formats"}}
    assert not [path for path in sources if "from PIL.Image import" in path.read_text()]


def test_importing_does_nothing_but_define(tmp_path: Path) -> None:
    """Importing every module in an empty folder prints nothing and leaves no file."""
    names = ["CrossVLT", "train", "test", "predict", "app", "utils", "errors"]
    folders = [*FORBIDDEN, "experiments"]
    paths = [path.relative_to(ROOT).with_suffix("") for folder in folders for path in modules(folder)]
    names += [".".join(path.parts) for path in paths]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(names)}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert not list(tmp_path.iterdir())
