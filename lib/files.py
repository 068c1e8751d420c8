"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from errors import UserError


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object], before_replacing: Callable[[], object] | None = None
) -> None:
    """Let `write` fill a file whose name appears, or is replaced, only when its content is complete on the disk.

    before_replacing: called between the two, when nothing can fail any more for want of space. Raises UserError where
    the file cannot be written, such as on a full disk; what was there before is kept then.
    """
    path = Path(path)
    temporary = path.with_name(f"{temporary_prefix(path)}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_replacing:
            before_replacing()
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind a RuntimeError about positions in its archive
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path} could not be written ({reason}); what was there before is untouched") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def temporary_prefix(path: Path) -> str:
    """Return how the names begin that `write_atomically` gives files on their way to `path`, beside it."""
    return f".{path.name}."


def _sync_folder(folder: Path) -> None:
    """Make a new name as lasting as the file's content; not every file system offers this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
