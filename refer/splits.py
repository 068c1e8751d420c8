"""Which data sets there are, the ways to split them, and what belongs to which split: plain data, no import."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from errors import UserError

SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
    "refclef": {"unc": ("train", "val", "testA", "testB", "testC"), "berkeley": ("train", "val", "test")},
}
# Published numbers of (objects, expressions), None where only the objects were counted; a row that is missing was never
# published.
COUNTS: dict[tuple[str, str], dict[str, tuple[int, int | None]]] = {
    ("refcoco", "unc"): {
        "train": (42_404, 120_624),
        "val": (3_811, 10_834),
        "testA": (1_975, 5_657),
        "testB": (1_810, 5_095),
    },
    ("refcoco", "google"): {"train": (40_000, None), "val": (5_000, None), "test": (5_000, None)},
    ("refcoco+", "unc"): {
        "train": (42_278, 120_191),
        "val": (3_805, 10_758),
        "testA": (1_975, 5_726),
        "testB": (1_798, 4_889),
    },
    ("refcocog", "umd"): {"train": (42_226, 80_512), "val": (2_573, 4_896), "test": (5_023, 9_602)},
    ("refcocog", "google"): {"train": (44_822, 85_474), "val": (5_000, 9_536)},
}
COCO_IMAGES = "images/mscoco/images/train2014"
OTHER_IMAGES = {"refclef": "images/saiapr_tc-12"}  # of the others: COCO_IMAGES
JSONL = "jsonl"  # the user's own data, whose splits stand in the files
MANUAL = "See docs/data.md"


def splits_of(dataset: str, split_by: str) -> tuple[str, ...]:
    """Return the names of the splits; UserError, listing what exists, where there is no such data set."""
    try:
        return SPLITS[dataset][split_by]
    except KeyError:
        raise UserError(f"there is no {dataset} split by {split_by}. All there is: {_all_splits()}") from None


def usual_way(dataset: str) -> str:
    """Return the first way to split a data set: "umd" for refcocog, "unc" for the others."""
    return next(iter(SPLITS[dataset]))


def _all_splits() -> str:
    rows = ((dataset, by, names) for dataset, ways in SPLITS.items() for by, names in ways.items())
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
        ways = [ways[0] if ways[0] in SPLITS.get(name, ways) else usual_way(name) for name in names]
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
