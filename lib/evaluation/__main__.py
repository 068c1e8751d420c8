"""One table from several results of `test.py --json`, beside a control with shuffled expressions.

    python -m lib.evaluation table run/val.json run/testA.json --control run/val_shuffled.json
    python -m lib.evaluation table run/val.json --control run/val_shuffled.json --least 60 --drop 25

With `--least` and `--drop` the exit code is 1 if the first result has less overall IoU than that, or if the control
comes within that many points of it: such a model does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run
from lib.arguments import Parser, finite, rate
from lib.evaluation.tables import read_result, table
from lib.files import write_text
from lib.outputs import check_output


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write it if asked, and judge it if asked."""
    commands = Parser("python -m lib.evaluation", description=__doc__)
    parser = commands.add_subparsers(dest="command", required=True).add_parser("table", help="of several results")
    parser.add_argument("results", type=Path, nargs="+", help="what test.py --json wrote")
    parser.add_argument("--control", type=Path, help="the first result's split with --shuffle_expressions")
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    parser.add_argument("--least", type=rate, help="overall IoU that the first result must reach, in percent")
    parser.add_argument("--drop", type=finite, help="points of overall IoU by which the control must be lower")
    args = commands.parse_args(arguments)
    if args.drop is not None and args.control is None:
        raise UserError("--drop needs a --control to compare with")
    if args.out is not None:
        check_output(args.out, "--out", inputs=[*args.results, *([args.control] if args.control else [])])
    results = [read_result(path) for path in args.results]
    control = read_result(args.control) if args.control else None
    text = table(results, control)
    print(text)
    if args.out is not None:
        write_text(args.out, f"{text}\n")

    reached = results[0]["overall_iou"]
    if args.least is not None and reached < args.least:
        raise UserError(f"overall IoU is {reached:.2f}, expected at least {args.least:g}")
    if args.drop is not None and control and reached - control["overall_iou"] < args.drop:
        raise UserError(
            f"overall IoU falls from {reached:.2f} to {control['overall_iou']:.2f} with shuffled expressions, "
            f"expected {args.drop:g} points or more: the model hardly reads"
        )


if __name__ == "__main__":
    run(main)
