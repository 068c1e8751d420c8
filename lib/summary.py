"""One table from several results of `test.py --json`, beside a control with shuffled expressions.

    python -m lib.summary run/val.json run/testA.json --control run/val_shuffled.json
    python -m lib.summary run/val.json --control run/val_shuffled.json --least 60 --drop 25

With `--least` and `--drop` the exit code is 1 where the first result has less overall IoU than that, or where the
control comes within that many points of it: such a model does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError, run
from lib.arguments import Parser
from lib.contents import RESULT
from lib.files import write_atomically
from lib.outputs import check_output
from lib.published import THRESHOLDS
from lib.schema import parse_json
from lib.texts import showable


def read_result(path: Path) -> dict[str, Any]:
    """Return what `test.py --json` wrote; raises UserError for anything else."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    result: dict[str, Any] = parse_json(content, RESULT, path, "no result of test.py --json")
    return result


def row(result: dict[str, Any]) -> str:
    """Return a result as a line of a Markdown table, in percent."""
    shuffled = ", expressions shuffled" if result.get("expressions") == "shuffled" else ""
    own_size = f", at {result['measured_at']}" if "measured_at" in result else ""
    overlap = f", overlap counts as {result['overlap']}" if "overlap" in result else ""
    values = [result["precision"][str(threshold)] for threshold in THRESHOLDS]
    values += [result["mean_iou"], result["overall_iou"]]
    cells = [
        f"{result['dataset']} {result['split']}{shuffled}{own_size}{overlap}",
        str(result["n_expressions"]),
        *(f"{value:.2f}" for value in values),
    ]
    return f"| {' | '.join(cells)} |"


def table(results: list[dict[str, Any]], control: dict[str, Any] | None) -> str:
    """Return the results as a Markdown table, the control last."""
    names = ["split", "expressions", *(f"P@{threshold}" for threshold in THRESHOLDS), "Mean IoU", "Overall IoU"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [row(result) for result in [*results, control] if result]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, write it where asked, and judge it where asked."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="what test.py --json wrote")
    parser.add_argument("--control", type=Path, help="the first result's split with --shuffle_expressions")
    parser.add_argument("--out", type=Path, help="write the table to this file, too")
    parser.add_argument("--least", type=float, help="overall IoU that the first result must reach, in percent")
    parser.add_argument("--drop", type=float, help="points of overall IoU by which the control must be lower")
    args = parser.parse_args(arguments)
    if args.out is not None:
        check_output(args.out, "--out", inputs=[*args.results, *([args.control] if args.control else [])])
    results = [read_result(path) for path in args.results]
    control = read_result(args.control) if args.control else None
    text = table(results, control)
    print(text)
    if args.out is not None:
        write_atomically(args.out, lambda file: file.write(f"{showable(text)}\n".encode()))

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
