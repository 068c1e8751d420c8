"""The repository's own rules: who may import whom, and what importing does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("lib", "bert", "data", "refer", "page", "benchmarks", "experiments")
# The rooms that each room may import, from the ground up. "lib" is the ground: the files of `lib` itself, except its
# engine.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "utils": {"errors"},
    "lib": {"errors"},
    "lib.network": {"errors", "utils", "lib"},
    "lib.pictures": {"errors", "lib", "lib.network"},
    "lib.evaluation": {"errors", "utils", "lib", "lib.network", "lib.pictures"},
    "lib.weights": {"errors", "lib", "lib.network"},
    "lib.training": {"errors", "utils", "lib", "lib.network", "lib.weights"},
    "lib.engine": {"errors", "utils", "lib", "lib.network", "lib.evaluation", "lib.training"},
    "bert": {"errors", "lib"},
    "refer": {"errors", "utils", "lib"},
    "data": {"errors", "utils", "lib", "refer"},
    "data.sample": {"errors", "lib", "refer"},
    "CrossVLT": {"errors", "lib", "lib.network", "lib.weights", "bert"},
    "trained": {"errors", "lib", "lib.weights", "bert", "CrossVLT"},
    "dry_run": {"errors", "utils", "bert", "data", "refer"},
}
BELOW_ROOFS = set(ALLOWED)
# The roofs; `app` is a page over `predict`, and `page` what it shows.
ALLOWED |= dict.fromkeys(("train", "test", "predict", "predict_onnx", "score"), BELOW_ROOFS)
ALLOWED["page"] = BELOW_ROOFS | {"predict"}
ALLOWED["app"] = ALLOWED["page"] | {"page"}
FOLDERS = ("lib", "bert", "data", "refer", "page")
HOUSE = {*ALLOWED, "benchmarks", "experiments", "tests"}


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


def room_of(name: str) -> str | None:
    """Return the room of a module, given its full name; None for a module of another project."""
    parts = name.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in HOUSE), None)


def rooms() -> dict[str, list[Path]]:
    """Return the modules of every room."""
    found: dict[str, list[Path]] = {room: [] for room in ALLOWED}
    for path in [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in modules(folder))]:
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert room in found, f"{path} is in no room"
        found[room].append(path)
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_rooms_below_them(room: str) -> None:
    files = rooms()[room]
    assert files
    for file in files:
        entered = {name: room_of(name) for name in imports(file)}
        wrong = [name for name, other in entered.items() if other not in (None, room, *ALLOWED[room])]
        assert not wrong, f"{file.name} imports {wrong}"


def test_the_rooms_are_a_staircase() -> None:
    """Every room is below those that import it: the imports have no circle."""
    below: set[str] = set()
    while waiting := [room for room in ALLOWED if room not in below]:
        next_ones = {room for room in waiting if ALLOWED[room] <= below}
        assert next_ones, f"{waiting} import each other"
        below |= next_ones


def test_utils_alone_knows_torch_distributed() -> None:
    for file in [*ROOT.glob("*.py"), *(path for folder in (*FOLDERS, "experiments") for path in modules(folder))]:
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
    assert found == {"lib/photo.py": {"formats"}}
    assert not [path for path in sources if "from PIL.Image import" in path.read_text()]


@pytest.mark.slow  # starts Python with the whole stack
def test_importing_does_nothing_but_define(tmp_path: Path) -> None:
    """Importing every module in an empty folder prints nothing and leaves no file."""
    names = ["CrossVLT", "trained", "dry_run", "train", "test", "predict", "score", "app", "utils", "errors"]
    folders = [*FOLDERS, "experiments"]
    paths = [path.relative_to(ROOT).with_suffix("") for folder in folders for path in modules(folder)]
    names += [".".join(path.parts) for path in paths]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(names)}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert not list(tmp_path.iterdir())
