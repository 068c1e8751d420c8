"""The report of a run, combined from the files that its steps have written so far."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.compare import Row
from benchmarks.gpu.steps import STEPS, read_sheet
from benchmarks.report import MORE
from benchmarks.roofline import Rate
from benchmarks.targets import Results


def combine(out: Path, device: str, settings: dict[str, Any]) -> Results:
    """Return all results of the steps in a folder; device: "cpu" or "cuda"."""
    sheets = {step.name: read_sheet(out, step).content for step in STEPS}
    found: dict[str, list[Any]] = {}
    for sheet in sheets.values():
        for name in ("rates", "rows", *MORE):
            found.setdefault(name, []).extend(sheet.get(name, []))
    steps = [{"name": name, "left_out": [], **outcome(sheet)} for name, sheet in sheets.items() if sheet]
    return Results(
        device=device,
        environment=sheets["environment"].get("environment", {}),
        settings=settings,
        rates=[Rate(**rate) for rate in found["rates"]],
        rows=by_case(map(Row.of, found["rows"])),
        steps=steps,
        **{name: found[name] for name in MORE if name != "steps"},
    )


def outcome(sheet: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome of a step; a step without one was interrupted together with the command."""
    ended = {name: sheet[name] for name in ("seconds", "failure", "left_out", "n_tests") if name in sheet}
    return {"seconds": 0.0, "failure": "cut off"} | ended


def by_case(rows: Iterable[Row]) -> list[Row]:
    """Return the rows grouped by case, in the order of first occurrence."""
    rows = list(rows)
    places = {(row.part, row.case): number for number, row in reversed([*enumerate(rows)])}
    return sorted(rows, key=lambda row: places[row.part, row.case])
