"""Errors caused by the machine or its files end a command with one message, exit code 1 and no traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import errors
import utils
from lib import photo


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # which an end with a message replaces


def failing(error: Exception) -> Callable[[], object]:
    def main() -> None:
        raise error

    return main


def message_of(run: Callable, main: Callable[[], object], capsys: pytest.CaptureFixture) -> str:
    """Return the message with which a command ends, wherever it is written."""
    with pytest.raises(SystemExit) as ended:
        run(main)
    if isinstance(ended.value.code, str):  # Python prints it, and ends with 1
        return ended.value.code
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("run", [errors.run, utils.run])
def test_an_error_of_a_file_names_it(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for path in (tmp_path / "none", tmp_path / ("x" * 300), tmp_path):
        message = message_of(run, path.read_bytes, capsys)
        assert message.startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (MemoryError("Unable to allocate 4 TiB"), ["--batch-size", "--img_size", "4 TiB"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), ["--batch-size", "--img_size"]),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ["--workers", "ulimit -n"]),
        (OSError("Caught OSError in DataLoader worker process 0: [Errno 24] Too many open files"), ["ulimit -n"]),
    ],
)
def test_missing_resources_are_named(error: Exception, named: list[str], capsys: pytest.CaptureFixture) -> None:
    message = message_of(utils.run, failing(error), capsys)
    assert message.startswith("error: ") and all(name in message for name in named)


def test_faults_of_the_program_keep_their_traceback() -> None:
    for error in (RuntimeError("shapes"), OSError("of no file"), KeyError("a")):
        with pytest.raises(type(error)):
            utils.run(failing(error))


def test_an_image_is_not_blamed_for_too_many_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(photo.Image, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        photo.open_photo(Path(__file__))


def test_a_text_without_end_ends_in_a_message() -> None:
    assert errors.cut("the man") == "'the man'"
    assert errors.cut("x" * 5000) == f"'{'x' * 200}' and 4,800 more characters"
