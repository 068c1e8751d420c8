"""Zip archives that others made: nothing in them leads out of its folder, and none unpacks without end."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from errors import UserError
from lib.files import write_atomically

CHUNK = 1 << 20  # bytes


class Limits(NamedTuple):
    """How much an archive may hold."""

    entries: int
    unpacked: int  # bytes of all entries
    ratio: int  # of compression of an entry


@contextmanager
def damage() -> Iterator[None]:
    """Turn any error of a damaged archive into a ValueError; each compression method raises its own exceptions."""
    try:
        yield
    except (UserError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"it is not a valid zip archive ({str(error) or type(error).__name__})") from error


def check_entries(content: zipfile.ZipFile, limits: Limits) -> None:
    """Raise ValueError for an archive that is larger than its limits, or whose entries lead out of its folder."""
    entries = content.infolist()
    if len(entries) > limits.entries or sum(entry.file_size for entry in entries) > limits.unpacked:
        raise ValueError(f"it holds more than {limits.entries:,} files or {limits.unpacked:,} bytes")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"its entry {entry.filename!r:.100} leads out of its folder")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"its entry {entry.filename!r:.100} is a link or a device")
        if entry.file_size > limits.ratio * max(entry.compress_size, 1024):
            raise ValueError(f"its entry {entry.filename!r:.100} unpacks to {entry.file_size:,} bytes, a zip bomb")


def unpack_file(content: zipfile.ZipFile, name: str, target: Path) -> None:
    """Write an entry of an archive to a file. Raises ValueError if there is none, or it is damaged."""
    try:
        entry = content.getinfo(name)
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    with content.open(entry) as source:  # stops at the announced size, and checks the CRC there
        chunks = iter(partial(_read_chunk, source), b"")
        write_atomically(target, lambda file: file.writelines(chunks))


def _read_chunk(source: IO[bytes]) -> bytes:
    with damage():  # around the read only, because a damaged archive may raise OSError, as a full disk does
        return source.read(CHUNK)
