"""Several trainings side by side: the flags that differ, the best scores, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from errors import UserError, cut
from lib.contents import RUN
from lib.logs import Record, files_of_runs, read_log
from lib.schema import both, option, parse_json, record
from lib.scores import MISSING, leading, protocol_of, score_names, score_values, two_decimals
from lib.texts import markdown_table

# Options that differ between any two runs, or say nothing about them.
UNCOMPARED = ("output_dir", "resume", "overwrite", "dry_run", "local_rank", "print_freq")
DESCRIPTION = both(RUN, record({"options": record({})}, optional={"host": option, "device": option}))


class Run(NamedTuple):
    """A training, finished or not."""

    options: Mapping[str, Any]
    place: str  # device and host
    epochs: Sequence[Record]  # of the log
    steps: Sequence[Record]

    @property
    def best(self) -> Record | None:
        """The first epoch with the best score; None before the first validation."""
        return max((one for one in self.epochs if one["val"]), key=lambda one: leading(one["val"]), default=None)


def read_runs(folders: Sequence[Path]) -> dict[str, Run]:
    """Return the trainings in output folders by name. Raises UserError if a folder has none, or a damaged file."""
    runs = {}
    for name, files in files_of_runs(folders, "run_*.json").items():
        for file in files:
            title = name if len(files) == 1 else f"{name} {file.stem.removeprefix('run_')}"
            runs[title] = read_run(file)
    return runs


def read_run(file: Path) -> Run:
    """Return the training that a run_*.json describes; its log is beside it."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    described = parse_json(content, DESCRIPTION, file, "no description of a run")
    records = read_log(file.with_name(f"log_{file.stem.removeprefix('run_')}.jsonl"))
    of_kind = {kind: [one for one in records if one["kind"] == kind] for kind in ("epoch", "step")}
    place = ", ".join(str(described[name]) for name in ("device", "host") if described.get(name))
    return Run(described["options"], place, of_kind["epoch"], of_kind["step"])


def compare_runs(runs: Mapping[str, Run]) -> str:
    """Return a table in Markdown with a column for each run: flags that differ, scores, time and memory."""
    rows = [*_options(list(runs.values())), *_scores(list(runs.values()))]
    columns = list(zip(*(measures(run).items() for run in runs.values()), strict=True))
    rows += [[cells[0][0], *(value for _, value in cells)] for cells in columns]
    return markdown_table(["", *runs], rows, n_texts=1)


def _options(runs: Sequence[Run]) -> list[list[str]]:
    """Return a row for each flag, or value derived from flags, that differs between the runs."""
    names = [name for name in dict.fromkeys(name for run in runs for name in run.options) if name not in UNCOMPARED]
    rows = [[name, *(_shown(run.options.get(name)) for run in runs)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value: object) -> str:
    text = " ".join(str(value).split())  # a cell has one line
    return MISSING if value is None else text if len(text) <= 40 else cut(text, 40)


def _scores(runs: Sequence[Run]) -> list[list[str]]:
    """Return a row for each score of the best epochs, by the protocol of each run."""
    tables = []
    for run in runs:
        scores = run.best["val"] if run.best else None
        names = score_names(protocol_of(scores)) if scores else []
        tables.append(dict(zip(names, two_decimals(score_values(scores)) if scores else [], strict=True)))
    every = dict.fromkeys(name for table in tables for name in table)
    return [[f"best epoch: {name}", *(table.get(name, MISSING) for table in tables)] for name in every]


def measures(run: Run) -> dict[str, str]:
    """Return what the log measured of a run, as text by name; epochs count from 1."""
    seconds = sum(one.get("seconds") or 0 for one in run.epochs)
    last = run.epochs[-1] if run.epochs else run.steps[-1]
    memory = [one["memory_gib"] for one in (*run.epochs, *run.steps) if one.get("memory_gib") is not None]
    speeds = [one["samples_per_second"] for one in run.epochs if one.get("samples_per_second") is not None]
    return {
        "best epoch": str(run.best["epoch"] + 1) if run.best else MISSING,
        "epochs done": f"{len(run.epochs)} of {run.options.get('epochs', MISSING)}",
        "last loss": MISSING if last["loss"] is None else f"{last['loss']:.4f}",
        "training time without validation": str(timedelta(seconds=round(seconds))),
        "samples/s": f"{sorted(speeds)[len(speeds) // 2]:.1f}" if speeds else MISSING,
        "peak memory, GiB": f"{max(memory):.2f}" if memory else MISSING,
        "device": run.place or MISSING,
    }
