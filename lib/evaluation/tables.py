"""Results of `test.py --json`, and Markdown tables of their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errors import UserError
from lib.contents import RESULT
from lib.schema import parse_json
from lib.scores import scores_in_markdown


def read_result(path: Path) -> dict[str, Any]:
    """Return the content of a file of `test.py --json`; raises UserError for any other file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    result: dict[str, Any] = parse_json(content, RESULT, path, "no result of test.py --json")
    return result


def describe_result(result: dict[str, Any]) -> str:
    """Return the data set and split of a result, the size it was measured at, and what else it differs in from others.

    Files of earlier versions do not always tell the size.
    """
    shuffled = ", expressions shuffled" if result.get("expressions") == "shuffled" else ""
    side = result.get("img_size")
    size = result.get("measured_at", f"{side}×{side} pixels" if side else "")
    size = f", at {size}" if size else ""
    overlap = f", overlap counts as {result['overlap']}" if "overlap" in result else ""
    tokens = f", {result['max_tokens']} tokens of a sentence" if "max_tokens" in result else ""
    limit = f", the first {result['limit']} sentences" if "limit" in result else ""
    return f"{result.get('name', result['dataset'])} {result['split']}{shuffled}{size}{overlap}{tokens}{limit}"


def score_table(results: list[dict[str, Any]], control: dict[str, Any] | None) -> str:
    """Return the results as a Markdown table, the control last; rows of several checkpoints begin with its name."""
    rows = [result for result in [*results, control] if result]
    several = len({result.get("checkpoint") for result in rows}) > 1
    named = [
        (f"{_weights(result)}{describe_result(result)}" if several else describe_result(result)) for result in rows
    ]
    return scores_in_markdown(zip(named, rows, strict=True), "split")


def _weights(result: dict[str, Any]) -> str:
    """Return the name of a result's checkpoint, as the beginning of a row; "" if it has none."""
    return f"{Path(result['checkpoint']).name}: " if result.get("checkpoint") else ""
