"""A lock that lets only one training write into a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

import utils
from errors import UserError

HELD = (errno.EACCES, errno.EAGAIN)  # errors that mean that another process has the lock
MAX_NOTE = 300  # bytes: host name and process id


class FolderLock:
    """Held until `release`, or until the process ends in any way: the system releases locks of dead processes.

    It is a POSIX lock. So it also works between machines on NFS, and is not inherited by data-loading workers, which
    may outlive their training for a moment. A process must open the file only once, because closing any handle of it
    releases the lock.
    """

    def __init__(self, path: Path, flag: str) -> None:
        """Take the lock. path: the lock file; it is created and never removed. flag: names the folder in messages.

        Raises UserError with host and process id of the owner if the lock is taken. Logs a note and continues if the
        file system does not support locks.
        """
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{flag}: {path} cannot be opened ({error.strerror}): choose another folder") from error
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                owner = os.read(self._handle, MAX_NOTE).decode(errors="replace").strip() or "another process"
                self.release()
                raise UserError(
                    f"{flag} {path.parent} is in use: {owner} trains into it. Wait for it, stop it, or choose another "
                    "folder"
                ) from error
            utils.log(
                f"{flag} {path.parent} does not support locks ({error.strerror}): do not start a second training there"
            )
            return
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
