"""Processes, devices, seeds and messages: what every script needs and no network knows.

This is the only file that mentions `torch.distributed`. A single process without a launcher is a valid
world of size one, so callers never ask whether there is a process group.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


class UserError(Exception):
    """A mistake of the user: says what was expected, what came, where, and what to do.

    Scripts print it as one message without a traceback and exit with 1 (see `run`).
    """


def user_message(error: UserError) -> str:
    """Return the message alone; data-loader workers wrap it in their own traceback."""
    return str(error).rsplit("UserError: ", 1)[-1].strip()


def run(main: Callable[[], None]) -> None:
    """Call `main`; end with one clear message and exit code 1 where the user has to act."""
    try:
        main()
    except UserError as error:
        print(f"error: {user_message(error)}", file=sys.stderr)
        sys.exit(1)
    finally:
        close_processes()
