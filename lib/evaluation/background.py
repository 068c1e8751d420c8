"""Work in threads beside a test, such as writing pictures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

THREADS = 2  # Pillow resizes and compresses without Python's lock; more threads would only take turns
MOST_WAITING = 64  # tasks that may wait for a thread; then the caller waits, too, so memory stays bounded


class Background:
    """Runs tasks in threads, in the order in which they are given. After one has failed, the others are given up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS)
        self._waiting: deque[Future[None]] = deque()

    def add(self, task: Callable[[], None]) -> None:
        """Give a task. Raises the error of an earlier one that has failed."""
        self._waiting.append(self._pool.submit(task))
        self._collect(MOST_WAITING)

    def finish(self) -> None:
        """Wait for all tasks. Raises the error of the first one that has failed."""
        self._collect(0)
        self._pool.shutdown()

    def _collect(self, most: int) -> None:
        """Wait until at most `most` tasks are left."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            try:
                self._waiting.popleft().result()
            except BaseException:
                self._pool.shutdown(cancel_futures=True)
                raise
