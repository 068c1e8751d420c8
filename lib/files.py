"""Files that are written whole or not at all, over links and into devices and pipes, too."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from errors import UserError
from lib.texts import showable

ROOT = Path(__file__).parent.parent  # of this checkout


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object], before_replacing: Callable[[], object] | None = None
) -> None:
    """Let `write` fill a file whose name appears, or is replaced, only when its content is complete on the disk.

    A symbolic link stays one, and the file that it leads to is replaced. A device or a pipe is written to.
    before_replacing: called between the two, when nothing can fail any more for want of space; it may move what is
    there, a link too, so then the name itself is given to the new file. Raises UserError where the file cannot be
    written, such as on a full disk; what was there before is kept then.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if is_special(path):
            _write_into(path, write)
            return
        with replacing(path if before_replacing else follow(path)) as temporary:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if before_replacing:
                before_replacing()
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind a RuntimeError about positions in its archive
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path} could not be written ({reason}); what was there before is untouched") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as `write_atomically` does; half a character, which no file takes, becomes U+FFFD."""
    write_atomically(path, lambda file: file.write(showable(text).encode()))


@contextmanager
def replacing(path: Path, host: str = "") -> Iterator[Path]:
    """Give a name for a file or folder beside `path`; what is made there takes the place of `path` in one step.

    On an error it is removed. host: of this machine, where several may write at the same time and leftovers of the
    others must be told apart. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another machine or container may be writing the same file, with the same process id.
    name = f"{temporary_prefix(path)}{host and f'{host}.'}{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()


def temporary_prefix(path: Path) -> str:
    """Return how the names begin that `replacing` gives to what is on its way to `path`, beside it."""
    return f".{cut_name(path.name, longest_name(path.parent) - TEMPORARY_BYTES)}."


TEMPORARY_BYTES = 100  # that a temporary name may be longer than the name it stands for


def longest_name(folder: Path) -> int:
    """Return how many bytes a file's name in this folder may have; 255 where the folder does not exist yet."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return 255


def cut_name(name: str, limit: int) -> str:
    """Return as much of a name's beginning as `limit` bytes of a file's name hold, in whole characters."""
    while name and len(os.fsencode(name)) > limit:
        name = name[:-1]
    return name


@contextmanager
def alone_in(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Let one process at a time into the block for a folder; call `waiting` before another one is waited for.

    Nobody is waited for on file systems that know no locks.
    """
    handle = None
    try:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)  # which gives the lock back, as the end of the process does


def put_aside(path: Path, why: str = "old") -> Path:
    """Rename a file or folder to a name that is free, `….old`, `….old.2` and so on, and return it. Raises OSError.

    why: what the name ends with: "old", or "damaged" for what cannot be used.
    """
    names = (path.with_name(f"{path.name}.{why}{number}") for number in chain([""], map(".{}".format, count(2))))
    aside = next(name for name in names if not os.path.lexists(name))
    path.replace(aside)
    return aside


def follow(path: Path) -> Path:
    """Return where a symbolic link leads in the end, also where nothing is there yet; other paths as they are."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_special(path: Path) -> bool:
    """Tell whether what is there must be written into: a device, a pipe, a socket, or where this process prints to."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _printed_to(path) is not None


def _printed_to(path: Path) -> int | None:
    """Return the descriptor if a file is the one that stdout or stderr goes into, as /dev/stdout may be."""
    for descriptor in (1, 2):
        with suppress(OSError):  # the descriptor is closed
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def _write_into(path: Path, write: Callable[[BinaryIO], object]) -> None:
    if path.is_block_device():
        raise OSError(errno.EPERM, "it is a disk")
    content = BytesIO()
    write(content)  # which may want to move around in its file
    with os.fdopen(_open_special(path), "wb") as file:
        file.write(content.getbuffer())


def _open_special(path: Path) -> int:
    if (descriptor := _printed_to(path)) is not None:
        sys.stdout.flush()
        return os.dup(descriptor)  # a second opening would begin at the first byte again
    try:
        # A pipe that nobody reads would be waited for without end.
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(errno.ENXIO, "nobody reads from it") if error.errno == errno.ENXIO else error from error
    os.set_blocking(handle, True)
    return handle


def _sync_folder(folder: Path) -> None:
    """Make a new name as lasting as the file's content; not every file system offers this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
