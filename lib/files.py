"""Atomic writing of files, also through links, and into devices and pipes."""

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
    path: str | Path,
    write: Callable[[BinaryIO], object],
    before_replacing: Callable[[], object] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write a file that appears, or is replaced, only when its content is complete on the disk.

    write: writes the content. If the path is a symbolic link, the link stays and its target is replaced; a device or a
    pipe is written to directly. before_replacing: called after the content is written and before the file is replaced;
    it may rename the existing file or link, so the new file then gets the name itself. durable: False for many small
    files that a command can make again: does not wait for the disk, so a power failure may spoil them. Raises UserError
    if the file cannot be written, for example on a full disk; an existing file is then unchanged.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if is_special(path):
            _write_into(path, write)
            return
        with replacing(path if before_replacing else follow(path), durable=durable) as temporary:
            with temporary.open("xb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            if before_replacing:
                before_replacing()
    except (OSError, RuntimeError) as error:
        # On a full disk torch.save raises a RuntimeError about positions in its archive.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(f"{path} could not be written ({reason}); an existing file is unchanged") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as `write_atomically` does; lone surrogates become U+FFFD."""
    write_atomically(path, lambda file: file.write(showable(text).encode()))


@contextmanager
def replacing(path: Path, host: str = "", *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `path`; the file or folder made there replaces `path` in one step.

    After an error it is removed. host: name of this machine, if several machines may write at the same time and their
    leftovers must be distinguished. durable: write the new name to the disk, too. Raises OSError.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    # Another machine or container may be writing the same file, with the same process id.
    name = f"{temporary_prefix(path)}{host and f'{host}.'}{os.getpid()}.{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def temporary_prefix(path: Path) -> str:
    """Return the prefix of the temporary names that `replacing` uses for `path`."""
    return f".{cut_name(path.name, longest_name(path.parent) - TEMPORARY_BYTES)}."


TEMPORARY_BYTES = 100  # by which a temporary name may be longer than the final name


def longest_name(folder: Path) -> int:
    """Return the maximum length of a file name in this folder in bytes; 255 if the folder does not exist yet."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return 255


def cut_name(name: str, limit: int) -> str:
    """Return a name truncated to at most `limit` bytes, at a whole character."""
    while name and len(os.fsencode(name)) > limit:
        name = name[:-1]
    return name


@contextmanager
def alone_in(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold an exclusive lock on a folder in this block; call `waiting` before waiting for another process.

    Does nothing on file systems without locks.
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
            os.close(handle)  # releases the lock, as does the end of the process


def put_aside(path: Path, why: str = "old") -> Path:
    """Rename a file or folder to a free name, `….old`, `….old.2` and so on, and return it. Raises OSError.

    why: the suffix: "old", or "damaged" for files that cannot be used.
    """
    names = (path.with_name(f"{path.name}.{why}{number}") for number in chain([""], map(".{}".format, count(2))))
    aside = next(name for name in names if not os.path.lexists(name))
    path.replace(aside)
    return aside


def follow(path: Path) -> Path:
    """Return the final target of a symbolic link, even if it does not exist; other paths are returned unchanged."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_special(path: Path) -> bool:
    """Return whether a path must be written to directly: a device, pipe, socket, or the file of stdout or stderr."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _printed_to(path) is not None


def _printed_to(path: Path) -> int | None:
    """Return the descriptor of stdout or stderr if it writes to this file, as for /dev/stdout; else None."""
    for descriptor in (1, 2):
        with suppress(OSError):  # the descriptor is closed
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def _write_into(path: Path, write: Callable[[BinaryIO], object]) -> None:
    if path.is_block_device():
        raise OSError(errno.EPERM, "it is a disk")
    content = BytesIO()
    write(content)  # into memory first, because it may seek
    with os.fdopen(_open_special(path), "wb") as file:
        file.write(content.getbuffer())


def _open_special(path: Path) -> int:
    if (descriptor := _printed_to(path)) is not None:
        sys.stdout.flush()
        return os.dup(descriptor)  # opening it again would start at the first byte
    try:
        # Non-blocking, because opening a pipe without a reader would wait forever.
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(errno.ENXIO, "nobody reads from it") if error.errno == errno.ENXIO else error from error
    os.set_blocking(handle, True)
    return handle


def open_to_append(path: Path) -> BinaryIO:
    """Return a file that is written at its end; also a device, or a pipe that somebody reads. Raises OSError."""
    return os.fdopen(_open_special(path), "wb") if is_special(path) else path.open("ab")


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk; not all file systems support this."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
