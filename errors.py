"""Mistakes of the user, and how commands speak of them.

Imports nothing that takes time: a command's flags are checked with this alone, see `run`.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """A mistake of the user: says what was expected, what came, where, and what to do.

    Commands print it as one message without a traceback and exit with 1 (see `run`, and `utils.run`).
    """


def user_message(error: UserError) -> str:
    """Return the message alone; data-loader workers wrap it in their own traceback."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()


def file_message(error: OSError) -> str:
    """Return what a system's error says of a file, such as a name that is too long or a folder that is closed."""
    return f"{error.filename}: {error.strerror}"


N_NAMED = 5  # of many of a kind, how many a message names


def few(items: Sequence[object], count: int = N_NAMED) -> str:
    """Return a list for a message: its first `count` items, and how many more there are."""
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def cut(text: str, count: int = 200) -> str:
    """Return a text in quotes for a message: its first `count` characters, and how many more there are."""
    return f"{text[:count]!r}" + (f" and {len(text) - count:,} more characters" if len(text) > count else "")


def few_lines(lines: Sequence[str], count: int = N_NAMED) -> list[str]:
    """Return the first `count` of a message's lines of one kind, and a line that counts the others."""
    rest = len(lines) - count
    return [*lines[:count], f"… and {rest:,} more like these, {len(lines):,} in all"] if rest > 0 else list(lines)


def plain(text: str) -> str:
    """Return a text that does nothing to a terminal: control characters and halves of characters are written out.

    Line feeds and tabs stay.
    """
    return "".join(one if one in "\n\t" or not _acts(one) else one.encode("unicode_escape").decode() for one in text)


def _acts(character: str) -> bool:
    """Tell whether a character is a control, half of one, or changes the direction of what follows."""
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in BIDI


# Characters that turn the direction of what follows, as Unicode names them.
BIDI = frozenset({"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"})


class _Unfailing(io.FileIO):
    """Where a run prints to; what it does not take any more is dropped, as where its reader ended or a disk is full."""

    def write(self, content: Any, /) -> int:  # type: ignore[explicit-any]  # a buffer: no type in Python 3.11
        """Return how many bytes are done with."""
        try:
            return super().write(content)
        except OSError:
            return len(memoryview(content))


class _Plain(io.TextIOWrapper):
    """Text for a reader: what it names may come from files and servers of others."""

    def write(self, text: str, /) -> int:
        """Write a text as `plain` gives it."""
        return super().write(plain(text))


def let_output_never_fail() -> None:
    """Let nothing that is printed end a run: neither a reader that ended nor a character that is not known there.

    Such characters are written out, as \\u2026 is, and on stdout those that act on a terminal, too; stderr is also for
    bars of progress. Every line goes out at once: in a log, the error stands last.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        if stream is getattr(sys, f"__{name}__"):  # neither caught by a test nor replaced before
            stream.flush()
            writer = io.BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
            kind = _Plain if name == "stdout" else io.TextIOWrapper
            setattr(sys, name, kind(writer, stream.encoding, "backslashreplace", line_buffering=True))


def run(main: Callable[[], object]) -> None:
    """Call `main`; if the user has to act, end with one message and exit code 1.

    Scripts that import PyTorch, which takes seconds, first run their `parse_args` alone: so `--help` and mistakes in
    the flags are answered at once.
    """
    let_output_never_fail()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {plain(user_message(error))}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {plain(file_message(error))}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
