"""Mistakes of the user, and how commands speak of them.

Imports nothing that takes time: a command's flags are checked with this alone, see `run`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake of the user: says what was expected, what came, where, and what to do.

    Commands print it as one message without a traceback and exit with 1 (see `run`, and `utils.run`).
    """


def user_message(error: UserError) -> str:
    """Return the message alone; data-loader workers wrap it in their own traceback."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()


N_NAMED = 5  # of many of a kind, how many a message names


def few(items: Sequence[object], count: int = N_NAMED) -> str:
    """Return a list for a message: its first `count` items, and how many more there are."""
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(map(str, items[:count])) + more


def few_lines(lines: Sequence[str], count: int = N_NAMED) -> list[str]:
    """Return the first `count` of a message's lines of one kind, and a line that counts the others."""
    rest = len(lines) - count
    return [*lines[:count], f"… and {rest:,} more like these, {len(lines):,} in all"] if rest > 0 else list(lines)


def run(main: Callable[[], object]) -> None:
    """Call `main`; if the user has to act, end with one message and exit code 1.

    Scripts that import PyTorch, which takes seconds, first run their `parse_args` alone: so `--help` and mistakes in
    the flags are answered at once.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {user_message(error)}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
