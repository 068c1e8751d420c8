"""Opening any data set of the table: the one place that knows which reader reads which layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refer.datasets import DATA_SETS
from refer.grefer import G_REFER
from refer.lines import read_lines_data
from refer.refer import REFER, Index
from refer.splits import splits_of

# A reader takes DATA_ROOT, a data set's name, a way of splitting it and what pixels are where parts overlap.
READERS: dict[str, Callable[[Path, str, str, str], Index]] = {
    "refer": REFER,
    "sets": G_REFER,
    "lines": read_lines_data,
}


def open_data_set(root: str | Path, dataset: str, split_by: str, overlap: str | None = None) -> Index:
    """Return the index of a data set.

    root: folder of all data sets. overlap: one of `refer.refer.OVERLAPS`; None: as the data set is published. Raises
    UserError for a data set or way of splitting that does not exist, and if a file is missing or damaged.
    """
    splits_of(dataset, split_by)
    found = DATA_SETS[dataset]
    return READERS[found.layout](Path(root), dataset, split_by, overlap or found.overlap)
