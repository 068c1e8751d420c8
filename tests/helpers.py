"""What tests of several files need: waiting, ports, damage, a disk that fills up."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from errors import UserError


def wait_until(condition: Callable[[], object], seconds: float = 120, step: float = 0.02) -> None:
    """Check a condition every `step` seconds until it holds; fail if that takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(step)


def mostly_slow(cases: Iterable[Any], *, always: Container[Any]) -> list[Any]:
    """Mark cases of `pytest.mark.parametrize` as slow, except for representative ones."""

    def marked(case: Any) -> Any:
        return pytest.param(*(case if type(case) is tuple else [case]), marks=pytest.mark.slow)

    return [case if case in always else marked(case) for case in cases]


def free_port() -> int:
    """Return a port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flip_bit(path: Path, place: float = 0.5) -> None:
    """Change a single bit of a file; place: where, 0 (its begin) to 1."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0b100
    path.write_bytes(content)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Let the system refuse to make any file longer than `size` bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def naming(*parts: object, kind: type[Exception] = UserError) -> Iterator[None]:
    """Expect an error whose message holds every part as a word of its own: flags, files, values; its prose is free."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    missing = [part for part in parts if not re.search(rf"(?<![\w.-]){re.escape(str(part))}(?![\w/]|[.-]\w)", message)]
    assert not missing, f"{missing} in {message!r}"


@contextmanager
def few_files(count: int) -> Iterator[None]:
    """Let this process, and those that it starts, open `count` more files at a time, as `ulimit -n` would."""
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(used) + count + 1) if number not in used]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def ended_within(seconds: int) -> Iterator[None]:
    """Fail if the block, run by the main thread, has not ended by then."""

    def fail(*_: object) -> None:
        raise AssertionError(f"it hangs: no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
