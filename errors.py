"""Errors for the user, and how commands print them.

Imports nothing slow, because flags are checked before other imports, see `answer_first`.
"""

from __future__ import annotations

import gc
import io
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where, and what to do.

    Commands print it as one message without a traceback and exit with code 1 (see `run`, and `utils.run`).
    """


def user_message(error: UserError) -> str:
    """Return the message without the traceback that data-loading workers put around it."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()


def file_message(error: OSError) -> str:
    """Return the message of a system error with the file's name."""
    return f"{error.filename}: {error.strerror}"


N_NAMED = 5  # items that a message lists


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def few(items: Sequence[object], count: int = N_NAMED) -> str:
    """Return the first `count` items for a message, and the number of the others."""
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def cut(text: str, count: int = 200) -> str:
    """Return a quoted text for a message: its first `count` characters, and the number of the others."""
    return f"{text[:count]!r}" + (f" and {len(text) - count:,} more characters" if len(text) > count else "")


def few_lines(lines: Sequence[str], count: int = N_NAMED) -> list[str]:
    """Return the first `count` lines, and a line with the number of the others."""
    rest = len(lines) - count
    return [*lines[:count], f"… and {rest:,} more like these, {len(lines):,} in all"] if rest > 0 else list(lines)


def plain(text: str) -> str:
    """Return a text that is safe on a terminal: control characters and lone surrogates are escaped.

    Line feeds and tabs are kept.
    """
    return "".join(
        character if character in "\n\t" or not _is_control(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_control(character: str) -> bool:
    """Return whether a character is a control character, a lone surrogate, or changes the direction of the text."""
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in BIDI


# Bidirectional classes of the characters that change the direction of the text.
BIDI = frozenset({"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"})


class _Unfailing(io.FileIO):
    """An output that drops text if it cannot be written, because the reader has ended or the disk is full."""

    def write(self, content: Any, /) -> int:  # type: ignore[explicit-any]  # a buffer: no type in Python 3.11
        """Return the number of bytes written or dropped."""
        try:
            return super().write(content)
        except OSError:
            return len(memoryview(content))


class _Plain(io.TextIOWrapper):
    """An output that escapes control characters, because names in messages may come from foreign files and servers."""

    def write(self, text: str, /) -> int:
        """Write a text, escaped by `plain`."""
        return super().write(plain(text))


def let_output_never_fail() -> None:
    """Keep a run from failing when it prints, because the reader has ended or the encoding lacks a character.

    Characters that the encoding lacks are escaped, as in \\u2026. On stdout control characters are escaped as well;
    stderr needs them for progress bars. Output is line-buffered, so that the error is the last line of a log.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
        if stream is getattr(sys, f"__{name}__"):  # neither captured by a test nor already replaced
            stream.flush()
            writer = io.BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
            kind = _Plain if name == "stdout" else io.TextIOWrapper
            setattr(sys, name, kind(writer, stream.encoding, "backslashreplace", line_buffering=True))


def run(main: Callable[[], object]) -> None:
    """Call `main`; for a UserError print one message and exit with code 1."""
    end_imports()
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


def answer_first(parse_args: Callable[[], object]) -> None:
    """Answer `--help` and wrong flags as `run` does, before imports that take seconds; scripts call it before these.

    Until `end_imports` the garbage collector rests: modules stay, so it would look for garbage among them in vain.
    """
    run(parse_args)
    gc.disable()


def end_imports() -> None:
    """Wake the garbage collector after `answer_first`; it never looks at what has been imported until then."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
