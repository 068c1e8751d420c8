"""A command's outputs: tried before its work begins, and each written even if another one fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from errors import UserError, user_message
from lib.files import follow, is_special

# By what a command writes: whether the beginning of a file that is there shows that it is of that kind.
KINDS: dict[str, Callable[[bytes], bool]] = {
    "text": lambda head: b"\0" not in head,
    "JSON": lambda head: head.lstrip()[:1] in (b"", b"{", b"["),
    "a page of test.py": lambda head: not head or (b"<!DOCTYPE html>" in head and b"IoU" in head),
    "a PNG picture": lambda head: head.startswith(b"\x89PNG"),
    "weights": lambda head: head.startswith((b"PK", b"\x80")) or head[8:9] == b"{",
}


def check_output(path: str | Path, flag: str, kind: str = "text", inputs: Iterable[str | Path] = ()) -> None:
    """Raise UserError now rather than after hours where `write_atomically` cannot write a file, or should not.

    flag: what named it. kind: one of KINDS; a file of another kind was hardly meant to be replaced. inputs: files that
    the command reads.
    """
    path = Path(path)
    try:
        problem = _output_problem(path, kind, inputs)
        if not problem and not is_special(path):
            _try_folder(follow(path).parent)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
    if problem:
        raise UserError(f"{flag} {path} {problem}: name another file")


def _output_problem(path: Path, kind: str, inputs: Iterable[str | Path]) -> str:
    if path.is_dir():
        return "is a folder"
    if is_special(path):
        return "" if os.access(path, os.W_OK) else "takes no bytes"
    if not path.exists():
        return ""
    if any(is_same(path, one) for one in inputs):
        return "is read by this command"
    with path.open("rb") as file:
        return "" if KINDS[kind](file.read(1024)) else f"holds something else than {kind}"


def check_apart(file: str | Path, flag: str, others: Iterable[str | Path]) -> None:
    """Raise UserError if a file would stand where other outputs of a command, or folders of them, belong."""
    path = Path(os.path.realpath(file))
    for other in map(os.path.realpath, others):
        if path == Path(other) or path in Path(other).parents:
            raise UserError(f"{flag} {file} is where another output of this command belongs: name another file")


def is_same(path: Path, other: str | Path) -> bool:
    """Tell whether two paths lead to one file or folder; not where either is missing, or no path at all."""
    with suppress(OSError, ValueError):
        return path.samefile(other)
    return False


def make_folder(folder: str | Path, flag: str) -> None:
    """Make a folder unless it is there; raises UserError as `check_folder` does."""
    check_folder(folder, flag)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder} cannot be made ({error.strerror or error}): choose another") from error


def check_folder(folder: str | Path, flag: str) -> None:
    """Raise UserError now rather than after hours where a folder cannot take files; flag: what named it.

    It need not be there yet, and is not made: a command that is refused leaves nothing behind.
    """
    folder = Path(folder)
    try:
        _try_folder(folder)
        problem = "is the root folder" if os.path.dirname(real := os.path.realpath(folder)) == real else ""
    except OSError as error:
        problem = f"cannot be written to ({error.strerror or error})"
    if problem:
        raise UserError(f"{flag} {folder} {problem}: choose another")


def _try_folder(folder: Path) -> None:
    """Write a nameless file into a folder, or into the nearest one above it that is there. Raises OSError."""
    while True:
        try:
            folder.stat()
            break
        except FileNotFoundError:
            if folder.is_symlink() or folder == folder.parent:
                raise
            folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):
        pass


def complete(*steps: Callable[[], object]) -> None:
    """Take every step, even where one before it fails; then raise UserError with what all of them said."""
    problems = []
    for step in steps:
        try:
            step()
        except UserError as error:
            problems.append(user_message(error))
    if problems:
        raise UserError("\n".join(problems))
