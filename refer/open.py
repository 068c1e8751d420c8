"""Opening any data set of the table: the one place that knows which reader reads which layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refer.arefcoco import read_arefcoco
from refer.datasets import DATA_SETS, image_folder
from refer.grefer import G_REFER
from refer.lines import read_lines_data, text_files
from refer.passed_on import describe_resized, find_files, read_passed_on
from refer.refcocom import read_refcocom
from refer.refer import REFER, Index, ref_name
from refer.rows import fitted, image_sizes, own_size
from refer.splits import splits_of
from utils import log

# A reader takes DATA_ROOT, a data set's name, a way of splitting it and what pixels are where parts overlap.
READERS: dict[str, Callable[[Path, str, str, str], Index]] = {
    "refer": REFER,
    "sets": G_REFER,
    "lines": read_lines_data,
    "parquet": read_refcocom,
    "descriptions": read_arefcoco,
}


def open_data_set(root: str | Path, dataset: str, split_by: str, overlap: str | None = None) -> Index:
    """Return the index of a data set.

    root: folder of all data sets. overlap: one of `refer.refer.OVERLAPS`; None: as the data set is published. Raises
    UserError for a data set or way of splitting that does not exist, and if a file is missing or damaged.
    """
    splits_of(dataset, split_by)
    found, root = DATA_SETS[dataset], Path(root)
    overlap = overlap or found.overlap
    if found.passed_on and not _has_own_files(root, dataset, split_by) and find_files(root, dataset, split_by):
        index = read_passed_on(root, dataset, split_by, overlap)
    else:
        index = READERS[found.layout](root, dataset, split_by, overlap)
        if found.fits_masks:
            fit_masks(index)
    if index.resized:
        count = f"{len(index.resized):,} mask{'s' if len(index.resized) > 1 else ''} of another size than the image"
        log(f"{dataset}: {count}, resized to it, such as {index.resized[0]}")
    return index


def _has_own_files(root: Path, dataset: str, split_by: str) -> bool:
    """Tell whether any of the owners' files is there."""
    if DATA_SETS[dataset].layout == "lines":
        return bool(text_files(image_folder(root, dataset).parent, splits_of(dataset, split_by)))
    return any((root / dataset).glob("refs(*")) or (root / dataset / "instances.json").exists()


def fit_masks(index: Index) -> None:
    """Resize masks of another size than their image to it, and let images have the size of their files.

    Images that are missing or cannot be read keep their recorded size: loading or checking them says so.
    """
    images = [index.Imgs[image_id] for image_id in dict.fromkeys(ref["image_id"] for ref in index.data["refs"])]
    sizes = image_sizes(Path(index.IMAGE_DIR), [image["file_name"] for image in images])
    for image in images:
        size = sizes[image["file_name"]]
        if not isinstance(size, str):
            image["width"], image["height"] = size
    for ref in index.data["refs"]:
        image, (ann,) = index.Imgs[ref["image_id"]], index.objects_of(ref)
        size, own = (image["width"], image["height"]), own_size(ann["segmentation"])
        if own in (None, size) or isinstance(sizes[image["file_name"]], str):
            continue
        try:
            ann["segmentation"] = fitted(ann["segmentation"], size)
        except ValueError:
            continue  # no mask at all: whatever uses it says so
        index.resized.append(describe_resized(ref_name(ref), image["file_name"], own, size))
