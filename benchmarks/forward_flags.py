"""The flags of the benchmarks that compare ways to evaluate one network; nothing slow is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lib.arguments import Parser, positive_int
from lib.options import add_flags


def parse_forward_flags(name: str, description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the checked flags of a benchmark; name: of its module; arguments: None for those of the command line."""
    parser = Parser(f"python -m {name}", description=description)
    add_flags(parser, "--swin_type")
    add_flags(parser, "--img_size", help="height and width of the image")
    parser.add_argument("--repeats", type=positive_int, default=11, help="forward passes of each kind")
    return parser.parse_args(arguments)
