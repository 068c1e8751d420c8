"""The outputs of a command: checked before its work begins, and each written even if another one fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from errors import UserError, user_message
from lib.files import follow, is_special

# For each kind of output, a test whether the first bytes of an existing file are of that kind.
KINDS: dict[str, Callable[[bytes], bool]] = {
    "text": lambda head: b"\0" not in head,
    "JSON": lambda head: head.lstrip()[:1] in (b"", b"{", b"["),
    "a page of test.py": lambda head: not head or (b"<!DOCTYPE html>" in head and b"IoU" in head),
    "a table of test.py": lambda head: not head or head.startswith(b"sent_id,"),
    "a PNG picture": lambda head: head.startswith(b"\x89PNG"),
    "weights": lambda head: head.startswith((b"PK", b"\x80")) or head[8:9] == b"{",
    "an ONNX graph": lambda head: head.startswith(b"\x08"),  # the field of its version
}


def check_output(path: str | Path, flag: str, kind: str = "text", inputs: Iterable[str | Path] = ()) -> None:
    """Raise UserError if a file cannot or should not be written, before hours of work.

    flag: names the file in messages. kind: one of KINDS; a file of another kind is not replaced. inputs: files that the
    command reads, which are not replaced.
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
        return "" if os.access(path, os.W_OK) else "is not writable"
    if not path.exists():
        return ""
    if any(is_same(path, one) for one in inputs):
        return "is read by this command, or belongs to a data set"
    with path.open("rb") as file:
        return "" if KINDS[kind](file.read(1024)) else f"exists and is not {kind}"


def check_apart(file: str | Path, flag: str, others: Iterable[str | Path]) -> None:
    """Raise UserError if a file has the path of another output of a command, or of a folder of outputs."""
    path = Path(os.path.realpath(file))
    for other in map(os.path.realpath, others):
        if path == Path(other) or path in Path(other).parents:
            raise UserError(f"{flag} {file} is the path of another output of this command: name another file")


def is_same(path: Path, other: str | Path) -> bool:
    """Return whether two paths lead to the same file or folder; False if either does not exist or is not valid."""
    with suppress(OSError, ValueError):
        return path.samefile(other)
    return False


def make_folder(folder: str | Path, flag: str) -> None:
    """Make a folder if it does not exist; raises UserError as `check_folder` does."""
    check_folder(folder, flag)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {folder} cannot be made ({error.strerror or error}): choose another") from error


def check_folder(folder: str | Path, flag: str) -> None:
    """Raise UserError if no files can be written into a folder, before hours of work.

    flag: names the folder in messages. The folder need not exist and is not made, so a refused command leaves nothing.
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
    """Write a temporary file into a folder, or into its nearest existing parent. Raises OSError."""
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
    """Run every step, even if one before it fails; then raise UserError with the messages of all failures."""
    problems = []
    for step in steps:
        try:
            step()
        except UserError as error:
            problems.append(user_message(error))
    if problems:
        raise UserError("\n".join(problems))
