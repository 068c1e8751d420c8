"""Reading the logs of trainings, also of unfinished ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError
from lib.contents import log_line
from lib.schema import parse_json
from lib.texts import split_lines

Record = dict[str, Any]


def read_logs(folders: Sequence[Path]) -> dict[str, list[Record]]:
    """Return the records of every `log_*.jsonl` in folders of runs, by names for the legend."""
    files = files_of_runs(folders, "log_*.jsonl").items()
    return {f"{name} {file.stem.removeprefix('log_')}": read_log(file) for name, own in files for file in own}


def files_of_runs(folders: Sequence[Path], pattern: str) -> dict[str, list[Path]]:
    """Return the files of a pattern in each folder, by its name of `unique_names`; UserError if a folder has none."""
    found = {name: (folder, sorted(folder.glob(pattern))) for name, folder in unique_names(folders).items()}
    for folder, files in found.values():
        if not files:
            raise UserError(f"{folder} holds no {pattern}: name the --output-dir of a training")
    return {name: files for name, (_, files) in found.items()}


def unique_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders, each once, by the shortest ends of their paths that differ."""
    distinct = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    for length in range(1, max(len(folder.parts) for folder in distinct) + 1):
        names = {"/".join(folder.parts[-length:]): folder for folder in distinct}
        if len(names) == len(distinct):
            break
    return names


def read_log(file: Path) -> list[Record]:
    """Return the records of a log; a last line that is incomplete is left out with a note.

    Raises UserError with the line number if another line is not valid, and if there is no complete line.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"the log {file} cannot be read ({error.strerror})") from error
    whole, _, rest = content.rpartition(b"\n")
    lines = split_lines(whole + b"\n", file) if whole else []
    records = [
        parse_json(line, log_line, f"{file}, line {number}", "no line of a log that this train.py writes")
        for number, line in enumerate(lines, start=1)
    ]
    if rest:
        print(f"{file}: line {len(lines) + 1} is incomplete and left out")
    if not records:
        raise UserError(f"the log {file} has no complete line yet: train.py writes the first after --print-freq steps")
    return records
