"""Scores as the rows of a Markdown table, and the results of `test.py --json` that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import UserError
from lib.contents import RESULT
from lib.schema import parse_json
from lib.variants import THRESHOLDS


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
