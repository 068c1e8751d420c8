"""Scores as the rows of a Markdown table, and the results of `test.py --json` that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import UserError
from lib.contents import RESULT
from lib.schema import parse_json
from lib.scores import scores_in_markdown


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


def name_of(result: dict[str, Any]) -> str:
    """Return what was scored, with what is not the published protocol."""
    shuffled = ", expressions shuffled" if result.get("expressions") == "shuffled" else ""
    own_size = f", at {result['measured_at']}" if "measured_at" in result else ""
    overlap = f", overlap counts as {result['overlap']}" if "overlap" in result else ""
    return f"{result['dataset']} {result['split']}{shuffled}{own_size}{overlap}"


def table(results: list[dict[str, Any]], control: dict[str, Any] | None) -> str:
    """Return the results as a Markdown table, the control last."""
    return scores_in_markdown([(name_of(result), result) for result in [*results, control] if result], "split")
