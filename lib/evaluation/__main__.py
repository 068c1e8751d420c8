"""Make one table from several results of `test.py --json`, optionally with a control of shuffled expressions.

    python -m lib.evaluation table run/val.json run/testA.json --control run/val_shuffled.json
    python -m lib.evaluation table run/val.json --control run/val_shuffled.json --least 60 --drop 25

The exit code is 1 if the oIoU of the first result (gIoU of gRefCOCO) is below `--least`, or if the control is less than
`--drop` points below it: such a model barely uses the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run
from lib.arguments import Parser, finite_float, non_negative_float
from lib.evaluation.tables import read_result, score_table
from lib.files import write_text
from lib.outputs import check_output
from lib.scores import leading, leading_name, protocol_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write and check it as the flags say."""
    commands = Parser("python -m lib.evaluation", description=__doc__)
    parser = commands.add_subparsers(dest="command", required=True).add_parser("table", help="table of several results")
    parser.add_argument("results", type=Path, nargs="+", help="files of test.py --json")
    parser.add_argument("--control", type=Path, help="result of the first split with --shuffle_expressions")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--least", type=non_negative_float, help="minimum oIoU (or gIoU) of the first result, percent")
    parser.add_argument("--drop", type=finite_float, help="minimum drop of oIoU (or gIoU) in the control, in points")
    args = commands.parse_args(arguments)
    if args.drop is not None and args.control is None:
        raise UserError("--drop needs a --control to compare with")
    if args.out is not None:
        check_output(args.out, "--out", inputs=[*args.results, *([args.control] if args.control else [])])
    results = [read_result(path) for path in args.results]
    control = read_result(args.control) if args.control else None
    text = score_table(results, control)
    print(text)
    if args.out is not None:
        write_text(args.out, f"{text}\n")

    name, reached = leading_name(protocol_of(results[0])), leading(results[0])
    if args.least is not None and reached < args.least:
        raise UserError(f"{name} is {reached:.2f}, expected at least {args.least:g}")
    if args.drop is not None and control and reached - leading(control) < args.drop:
        raise UserError(
            f"{name} drops from {reached:.2f} to {leading(control):.2f} with shuffled expressions, "
            f"expected a drop of {args.drop:g} points or more: the model barely uses the sentence"
        )


if __name__ == "__main__":
    run(main)
