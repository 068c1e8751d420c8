"""Make one table of several results of `test.py --json`, one of each by kind of sentence, or one of several trainings.

    python -m lib.evaluation table run/val.json run/testA.json --control run/val_shuffled.json
    python -m lib.evaluation table run/val.json --control run/val_shuffled.json --least 60 --drop 25
    python -m lib.evaluation kinds run/val.json --scenes demo/data/scenes.json
    python -m lib.evaluation compare run_a run_b

`--control` is a result with shuffled expressions. `kinds` is for drawn data, whose scenes.json tells the kinds.
`compare` reads output folders of trainings: flags that differ, scores of the best epoch, time and memory.
The exit code of `table` is 1 if the oIoU of the first result (gIoU of gRefCOCO) is below `--least`, or if the control
is less than `--drop` points below it: such a model barely uses the sentence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, run
from lib.arguments import Parser, finite_float, non_negative_float
from lib.evaluation.kinds import read_sentences, table_by_kind
from lib.evaluation.runs import compare_runs, read_runs
from lib.evaluation.tables import describe_result, read_result, score_table
from lib.files import write_text
from lib.outputs import check_output
from lib.scores import leading, leading_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Print tables as the flags say."""
    args = parse_args(arguments)
    if args.command == "kinds":
        print_kinds(args.results, args.scenes)
    elif args.command == "compare":
        print(compare_runs(read_runs(args.runs)))
    else:
        print_table(args)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser("python -m lib.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="table of several results")
    kinds = commands.add_parser("kinds", help="table of each result by kind of sentence")
    compare = commands.add_parser("compare", help="table of several trainings, finished or not")
    compare.add_argument("runs", type=Path, nargs="+", help="output folders of trainings")
    for one in (table, kinds):
        one.add_argument("results", type=Path, nargs="+", help="files of test.py --json")
    kinds.add_argument("--scenes", type=Path, required=True, help="scenes.json of the drawn data that were tested on")
    table.add_argument("--control", type=Path, help="result of the first split with --shuffle_expressions")
    table.add_argument("--out", type=Path, help="also write the table to this file")
    table.add_argument("--least", type=non_negative_float, help="minimum oIoU (or gIoU) of the first result, percent")
    table.add_argument("--drop", type=finite_float, help="minimum drop of oIoU (or gIoU) in the control, in points")
    return parser.parse_args(arguments)


def print_kinds(paths: Sequence[Path], scenes: Path) -> None:
    """Print the scores of every result by kind of sentence."""
    sentences = read_sentences(scenes)
    for path in paths:
        result = read_result(path)
        print(f"{describe_result(result)}\n\n{table_by_kind(result, sentences, path)}\n")


def print_table(args: argparse.Namespace) -> None:
    """Print the table of all results, and write and check it as the flags say."""
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

    reached = leading(results[0])
    if args.least is not None and reached < args.least:
        raise UserError(f"{leading_text(results[0])}, expected at least {args.least:g}")
    if args.drop is not None and control and reached - leading(control) < args.drop:
        raise UserError(
            f"{leading_text(results[0])} drops to {leading_text(control)} with shuffled expressions, "
            f"expected a drop of {args.drop:g} points or more: the model barely uses the sentence"
        )


if __name__ == "__main__":
    run(main)
