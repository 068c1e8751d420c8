"""What belongs to which split of which data set, and what flags may name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from errors import UserError
from refer.datasets import DATA_SETS, Counts

JSONL = "jsonl"  # the user's own data, whose splits stand in the files
MANUAL = "See docs/data.md"


def splits_of(dataset: str, split_by: str) -> tuple[str, ...]:
    """Return the names of the splits; UserError, listing what exists, where there is no such data set."""
    try:
        return DATA_SETS[dataset].splits[split_by]
    except KeyError:
        raise UserError(f"there is no {dataset} split by {split_by}. All there is: {_all_splits()}") from None


def counts_of(dataset: str, split_by: str) -> Counts:
    """Return the published numbers of objects and expressions by split; {} where none were published."""
    return DATA_SETS[dataset].counts.get(split_by, {}) if dataset in DATA_SETS else {}


def usual_way(dataset: str) -> str:
    """Return the first way to split a data set: "umd" for refcocog, "unc" for the others."""
    return next(iter(DATA_SETS[dataset].splits))


def _all_splits() -> str:
    rows = ((dataset, by, names) for dataset, found in DATA_SETS.items() for by, names in found.splits.items())
    return "; ".join(f"{dataset} ({by}): {', '.join(names)}" for dataset, by, names in rows)


def in_split(ref_split: str, split: str) -> bool:
    """Tell whether a ref marked `ref_split` in its file belongs to `split`.

    `testA` takes every mark with an A in it (`testA`, `testAB`), and `test` every kind of test, as the field does.
    """
    if split in ("testA", "testB", "testC"):
        return split[-1] in ref_split
    if split == "test":
        return "test" in ref_split
    return ref_split == split


def check_split(dataset: str, split_by: str, splits: Collection[str], split: str) -> None:
    """Raise UserError unless `split` is one of a data set's splits, or `test` and it has several of them."""
    is_union = split == "test" and any(in_split(name, split) for name in splits)
    if split not in splits and not is_union:
        raise UserError(f"{dataset} ({split_by}) has no split '{split}', only {', '.join(splits)}. {MANUAL}")


def data_sets(dataset: str, split_by: str, files: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return data set and way of splitting for each that `--dataset a,b` and `--splitBy` name; none for the user's own.

    files: of the user's own data. One way stands for all data sets that have it; the others take their first one.
    Raises UserError for names that do not exist, and for what does not go together.
    """
    if (dataset == JSONL) != bool(files):
        raise UserError(f"--dataset {JSONL} and --data FILE.jsonl belong together")
    if dataset == JSONL:
        return []
    names, ways = dataset.split(","), split_by.split(",")
    if len(ways) == 1 and len(names) > 1:
        one = ways[0]
        ways = [one if name not in DATA_SETS or one in DATA_SETS[name].splits else usual_way(name) for name in names]
    if len(ways) != len(names):
        raise UserError(f"--splitBy {split_by}: {len(ways)} ways for the {len(names)} data sets {dataset}")
    pairs = list(zip(names, ways, strict=True))
    for pair in pairs:
        splits_of(*pair)
    return pairs


def check_data(dataset: str, split_by: str, split: str, files: Sequence[str] | None) -> None:
    """Raise UserError for flags of the data that name what does not exist; what is in files is not looked at."""
    if pairs := data_sets(dataset, split_by, files):
        check_split(dataset, split_by, dict.fromkeys(name for pair in pairs for name in splits_of(*pair)), split)
