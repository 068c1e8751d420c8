"""Which objects belong to which split of which data set, and the values that flags may have."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path

from errors import UserError
from lib.variants import MAX_TOKENS
from refer.datasets import DATA_SETS, Counts, is_drawn

JSONL = "jsonl"  # the user's own data, whose files define the splits
MANUAL = "See docs/data.md"


def splits_of(dataset: str, split_by: str) -> tuple[str, ...]:
    """Return the names of the splits; UserError, listing all data sets, if this one does not exist."""
    try:
        return DATA_SETS[dataset].splits[split_by]
    except KeyError:
        raise UserError(f"there is no {dataset} split by {split_by}. There are: {_all_splits()}") from None


def counts_of(dataset: str, split_by: str) -> Counts:
    """Return the published numbers of objects and expressions by split; {} if none were published."""
    return DATA_SETS[dataset].counts.get(split_by, {}) if dataset in DATA_SETS else {}


def why_unpublished(dataset: str, split_by: str, split: str, root: str | Path, counts: tuple[int, int]) -> str:
    """Return why a split is not the published one: it is drawn, or has other numbers than its owners count; or "".

    root: folder of the data sets. counts: numbers of objects and expressions in the split that was read. A split whose
    owners published no numbers is believed unless it is drawn.
    """
    if is_drawn(root):
        return "they are drawn samples"
    found = zip(counts, ("objects", "expressions"), strict=True)
    published = counts_of(dataset, split_by).get(split, (None, None))
    for (number, kind), expected in zip(found, published, strict=True):
        if expected not in (None, number):
            return f"they have {number:,} {kind}, and the published split has {expected:,}"
    return ""


def title_of(dataset: str, split_by: str, name: str | None = None) -> str:
    """Return how messages name the data that flags name: a data set with its way of splitting, or own data.

    name: of own data; None if it has none.
    """
    return name or "own data" if dataset == JSONL else f"{dataset} ({split_by})"


def total_of(dataset: str) -> int | None:
    """Return the published number of expressions in all splits; None if there is none, or one for each split."""
    return DATA_SETS[dataset].total if dataset in DATA_SETS else None


def default_split_by(dataset: str) -> str:
    """Return the default value of `--splitBy`: "umd" for refcocog, "unc" for RefCOCO and for several data sets.

    Those of several that have no "unc" use their own default. Training states have recorded it so ever since.
    """
    return next(iter(DATA_SETS[dataset].splits)) if dataset in DATA_SETS else "unc"


def default_overlap(dataset: str) -> str:
    """Return the default value of `--overlap`; raises UserError if several data sets are published with different ones.

    dataset: the value of `--dataset`.
    """
    found = {name: DATA_SETS[name].overlap for name in dataset.split(",") if name in DATA_SETS}
    kinds = sorted(set(found.values()))
    if len(kinds) > 1:
        named = ", ".join(f"{name} with {overlap}" for name, overlap in found.items())
        raise UserError(f"these data sets are published with different overlaps ({named}): choose one with --overlap")
    return kinds[0] if kinds else "background"


def noted_overlap(dataset: str, overlap: str) -> dict[str, str]:
    """Return what a file of scores says of the overlap: nothing if all its data sets are published with this one."""
    own = {DATA_SETS[name].overlap for name in dataset.split(",") if name in DATA_SETS} or {"background"}
    return {} if own == {overlap} else {"overlap": overlap}


def default_max_tokens(dataset: str) -> int:
    """Return the default value of `--max-tokens`: of several data sets, that of the longest sentences."""
    return max(DATA_SETS[name].max_tokens if name in DATA_SETS else MAX_TOKENS for name in dataset.split(","))


def protocol_of(dataset: str) -> str:
    """Return the protocol by which a data set is scored: of several mixed the first that is not the classic one."""
    names = (DATA_SETS[name].protocol for name in dataset.split(",") if name in DATA_SETS)
    return next((name for name in names if name != "classic"), "classic")


def _all_splits() -> str:
    rows = ((dataset, by, names) for dataset, entry in DATA_SETS.items() for by, names in entry.splits.items())
    return "; ".join(f"{dataset} ({by}): {', '.join(names)}" for dataset, by, names in rows)


def in_split(ref_split: str, split: str) -> bool:
    """Return whether a ref that is marked `ref_split` in its file belongs to `split`.

    As in the original API, `testA` includes every test marked with an A (`testA`, `testAB`), and `test` every kind of
    test. Unlike there, other marks with an A, such as `trainA` in own data, are no tests.
    """
    if split in ("testA", "testB", "testC"):
        return "test" in ref_split and split[-1] in ref_split
    if split == "test":
        return "test" in ref_split
    return ref_split == split


def check_split(dataset: str, split_by: str, splits: Collection[str], split: str) -> None:
    """Raise UserError unless `split` is a split of the data set, or `test` and it has several test splits."""
    is_union = split == "test" and any(in_split(name, split) for name in splits)
    if split not in splits and not is_union:
        title = title_of(dataset, split_by)
        raise UserError(f"there is no split '{split}' of {title}, only {', '.join(splits)}. {MANUAL}")


def data_sets(dataset: str, split_by: str, files: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the pairs (data set, split_by) that `--dataset a,b` and `--splitBy` name; none for the user's own data.

    files: of the user's own data. A single value of `--splitBy` applies to all data sets that have it; the others use
    their default. Raises UserError for unknown names and contradicting flags.
    """
    if (dataset == JSONL) != bool(files):
        raise UserError(f"--dataset {JSONL} and --data FILE.jsonl belong together")
    if dataset == JSONL:
        return []
    names, splits_by = dataset.split(","), split_by.split(",")
    if len(splits_by) == 1 and len(names) > 1:
        only = splits_by[0]
        splits_by = [
            only if name not in DATA_SETS or only in DATA_SETS[name].splits else default_split_by(name)
            for name in names
        ]
    if len(splits_by) != len(names):
        raise UserError(f"--splitBy {split_by} has {len(splits_by)} values for the {len(names)} data sets {dataset}")
    pairs = list(zip(names, splits_by, strict=True))
    for pair in pairs:
        splits_of(*pair)
    return pairs


def fill_data_flags(args: argparse.Namespace, *, training: bool) -> None:
    """Check the flags of the data, and set those that are None to the defaults of the data set.

    Raises UserError for names that do not exist, contradicting flags, and training on a data set for evaluation.
    """
    check_name(args.dataset, args.name)
    if args.splitBy is None:
        args.splitBy = default_split_by(args.dataset)
    for split in [args.split] if isinstance(args.split, str) else args.split:  # a test may have several
        check_data(args.dataset, args.splitBy, split, args.data_files)
    if args.overlap is None:
        args.overlap = default_overlap(args.dataset)
    if args.max_tokens is None and training:  # a test reads as many as the training did
        args.max_tokens = default_max_tokens(args.dataset)
    if training and args.dataset != JSONL and not any(DATA_SETS[name].trains for name in args.dataset.split(",")):
        raise UserError(
            f"--dataset {args.dataset} is for evaluation only: train on another data set, and test on this one with "
            f"test.py. --dataset refcoco,{args.dataset} trains on refcoco without the images of this one"
        )


def check_name(dataset: str, name: str | None) -> None:
    """Raise UserError for a name of anything but own data, and for the name of a published data set."""
    if name is not None and dataset != JSONL:
        raise UserError(f"--name {name} would rename {dataset}: it is for --dataset {JSONL}")
    if name in DATA_SETS:
        raise UserError(f"--name {name} is a published data set: choose another name for your own data")


def check_data(dataset: str, split_by: str, split: str, files: Sequence[str] | None) -> None:
    """Raise UserError if flags name a data set or split that does not exist. Reads no file."""
    if pairs := data_sets(dataset, split_by, files):
        check_split(dataset, split_by, dict.fromkeys(name for pair in pairs for name in splits_of(*pair)), split)
