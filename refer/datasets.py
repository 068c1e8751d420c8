"""The table of data sets: folders, splits, layouts and protocols. Importing it takes no time.

A new data set needs an entry in `DATA_SETS` and, for a new layout of files, one reader; see CONTRIBUTING.md. Counts are
those of the data sets' owners. Missing counts were never published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from lib.variants import MAX_TOKENS

Counts: TypeAlias = Mapping[str, tuple[int | None, int | None]]  # by split: objects, expressions; None: not published
Splits: TypeAlias = Mapping[str, tuple[str, ...]]  # by `--splitBy`: names of the splits; the default comes first

SAMPLE_NOTE = "sample.json"  # in a DATA_ROOT whose data were drawn by `data.sample`

# Usual folders of COCO's images below DATA_ROOT; the first one that exists is read.
COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014")
COCO_WITH_VAL = ("images/trainval2014", "trainval2014")  # train2014 and val2014 in one folder


class Lines(NamedTuple):
    """The layout of a data set of images, masks and lines of text; see `refer.lines`."""

    masks: str  # folder, next to that of the images
    suffix: str = ""  # of the file names, if the lines omit it
    above: int = 0  # pixels with a higher grey value are object


class Place(NamedTuple):
    """Possible paths of a data set of layout "sets"; the first one that exists is read."""

    folders: tuple[str, ...]  # below DATA_ROOT
    refs: tuple[str, ...] = ("refs({}).p",)  # {}: the value of `--splitBy`


class DataSet(NamedTuple):
    """The properties of a data set that are known before a file is opened."""

    splits: Splits
    counts: Mapping[str, Counts] = {}  # by `--splitBy`
    total: int | None = None  # expressions in all splits, of data sets without counts
    n_images: Mapping[str, int] = {}  # published numbers of images, by split
    layout: str = "refer"  # of its files: a key of `refer.open.READERS`
    images: tuple[str, ...] = COCO_FOLDERS  # folders below DATA_ROOT; the first one that exists is read
    max_tokens: int = MAX_TOKENS  # usual number of tokens of a sentence
    overlap: str = "background"  # of an object's parts, as published; one of `lib.options.OVERLAPS`
    protocol: str = "classic"  # of its scores: a key of `lib.evaluation.protocols.PROTOCOLS`
    lines: Lines | None = None  # of the layout "lines"
    place: Place | None = None  # of the layout "sets"; None: refs(SPLITBY).p in a folder of the data set's name
    passed_on: bool = False  # other groups distribute it as DATASET_SPLIT.jsonl, see `refer.passed_on`
    fits_masks: bool = False  # a mask of another size than its image is resized to it
    repeats: bool = True  # may have equal sentences of one object, and one image in two splits
    trains: bool = True  # False: for evaluation only


DATA_SETS: dict[str, DataSet] = {
    "refcoco": DataSet(
        {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
        {
            "unc": {
                "train": (42_404, 120_624),
                "val": (3_811, 10_834),
                "testA": (1_975, 5_657),
                "testB": (1_810, 5_095),
            },
            "google": {"train": (40_000, None), "val": (5_000, None), "test": (5_000, None)},
        },
    ),
    "refcoco+": DataSet(
        {"unc": ("train", "val", "testA", "testB")},
        {
            "unc": {
                "train": (42_278, 120_191),
                "val": (3_805, 10_758),
                "testA": (1_975, 5_726),
                "testB": (1_798, 4_889),
            }
        },
    ),
    "refcocog": DataSet(
        {"umd": ("train", "val", "test"), "google": ("train", "val")},
        {
            "umd": {"train": (42_226, 80_512), "val": (2_573, 4_896), "test": (5_023, 9_602)},
            "google": {"train": (44_822, 85_474), "val": (5_000, 9_536)},
        },
    ),
    "refclef": DataSet(
        {"unc": ("train", "val", "testA", "testB", "testC"), "berkeley": ("train", "val", "test")},
        images=("images/saiapr_tc-12",),
    ),
    "rrsisd": DataSet(
        {"unc": ("train", "val", "test")},
        {"unc": {"train": (12_181, 12_181), "val": (1_740, 1_740), "test": (3_481, 3_481)}},
        images=("images/rrsisd/JPEGImages",),
        max_tokens=22,
        passed_on=True,
        fits_masks=True,
        repeats=False,
    ),
    "refsegrs": DataSet(
        {"phrases": ("train", "val", "test")},
        {"phrases": {"train": (2_172, 2_172), "val": (431, 431), "test": (1_817, 1_817)}},
        layout="lines",
        images=("RefSegRS/images", "refsegrs/images"),
        max_tokens=20,
        lines=Lines("masks", suffix=".tif", above=50),
        passed_on=True,
        repeats=False,
    ),
    "risbench": DataSet(
        {"phrases": ("train", "val", "test")},
        total=52_472,  # the numbers of the splits are not certain
        layout="lines",
        images=("RISBench_dataset/img_rgb", "risbench/RISBench_dataset/img_rgb"),
        max_tokens=50,
        lines=Lines("mask"),
        passed_on=True,
        repeats=False,
    ),
    "grefcoco": DataSet(
        {"unc": ("train", "val", "testA", "testB")},
        {
            "unc": {
                "train": (None, 209_344),
                "val": (None, 14_229),
                "testA": (None, 19_200),
                "testB": (None, 17_086),
            }
        },
        n_images={"val": 1_500, "testA": 750, "testB": 750},
        layout="sets",
        max_tokens=20,
        overlap="object",
        protocol="gres",
        place=Place(("grefcoco",), ("grefs({}).p", "grefs({}).json")),
    ),
    "refzom": DataSet(
        {"final": ("train", "test")},
        layout="sets",
        images=COCO_WITH_VAL,
        overlap="object",
        protocol="ref-zom",
        place=Place(("ref-zom", "refzom"), ("refs({}).p", "Ref-ZOM({}).p")),
    ),
    # "unc" has the new masks, "old" RefCOCO's of the same objects.
    "refcocom": DataSet(
        {"unc": ("val",), "old": ("val",)},
        {"unc": {"val": (2_080, 5_598)}, "old": {"val": (2_080, 5_598)}},
        n_images={"val": 1_190},
        layout="parquet",
        trains=False,
    ),
    "arefcoco": DataSet(
        {"published": ("test",)},
        {"published": {"test": (4_112, 7_050)}},
        n_images={"test": 2_213},
        layout="descriptions",
        trains=False,
    ),
}


def is_drawn(root: str | Path) -> bool:
    """Tell whether the data sets in a folder are drawn samples of `data.sample`."""
    return Path(root, SAMPLE_NOTE).is_file()


def image_folder(root: Path, dataset: str) -> Path:
    """Return the folder of a data set's images below DATA_ROOT; the first of its folders if none exists."""
    folders = [root / name for name in DATA_SETS[dataset].images]
    return next(filter(Path.is_dir, folders), folders[0])


def photos_of(dataset: str) -> tuple[str, ...]:
    """Return what is the same for all data sets of one collection of images, in which an id means one image."""
    images = DATA_SETS[dataset].images if dataset in DATA_SETS else (dataset,)
    return COCO_FOLDERS if images == COCO_WITH_VAL else images


def data_files(root: str | Path) -> Iterator[Path]:
    """Yield the JSON files of all data sets below DATA_ROOT; no command may replace one of them by its output."""
    for name, entry in DATA_SETS.items():
        folders = {name, *(entry.place.folders if entry.place else ())}
        parents = {Path(folder).parent.as_posix() for folder in entry.images}  # with masks.json and DATASET_SPLIT.jsonl
        for folder in folders:
            for pattern in ("instances.json", "*refs(*", "*.jsonl", "arefcoco.json"):
                yield from Path(root, folder).glob(pattern)
        for folder in {*folders, *parents, "."}:
            for pattern in ("masks.json", "sizes.json", f"{name}_*.jsonl"):
                yield from Path(root, folder).glob(pattern)
