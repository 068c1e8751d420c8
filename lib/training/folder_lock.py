"""A folder that one training at a time writes into."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

import utils
from errors import UserError

HELD = (errno.EACCES, errno.EAGAIN)
LONGEST_NOTE = 300  # bytes: a host's name, and a number


class FolderLock:
    """Held until `release`, or until this process ends, however it ends: the system itself remembers no dead one.

    A lock of POSIX, so it also holds between machines on NFS, and data-loading workers, which may outlive their
    training for a moment, do not inherit it. A process takes it once: opening the file a second time gives it up.
    """

    def __init__(self, path: Path, flag: str) -> None:
        """Take the lock. path: a file that is made, and stays. flag: what named its folder, for messages.

        Raises UserError with the other process's machine and number if it is taken. A file system without locks is
        reported, and trusted.
        """
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{flag}: {path} cannot be opened ({error.strerror}): choose another folder") from error
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                owner = os.read(self._handle, LONGEST_NOTE).decode(errors="replace").strip() or "another process"
                self.release()
                raise UserError(
                    f"{flag} {path.parent} is in use: {owner} trains into it. Wait for its end, stop it, or choose "
                    "another folder"
                ) from error
            utils.log(f"{flag} {path.parent} knows no locks ({error.strerror}): start no second training there")
            return
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
