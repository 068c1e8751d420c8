"""Open any data set of the table: the only module that knows the reader of each layout."""

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
from refer.rows import image_sizes, resize_segmentation, stored_mask_size
from refer.splits import splits_of
from utils import log

# A reader takes DATA_ROOT, the name of a data set, and the values of `--splitBy` and `--overlap`.
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
    UserError for an unknown data set or `split_by`, and if a file is missing or damaged.
    """
    splits_of(dataset, split_by)
    entry, root = DATA_SETS[dataset], Path(root)
    overlap = overlap or entry.overlap
    if entry.passed_on and not _has_owners_files(root, dataset, split_by) and find_files(root, dataset, split_by):
        index = read_passed_on(root, dataset, split_by, overlap)
    else:
        index = READERS[entry.layout](root, dataset, split_by, overlap)
        if entry.fits_masks:
            fit_masks(index)
    if index.resized:
        count = f"{len(index.resized):,} mask{'s' if len(index.resized) > 1 else ''} of another size than the image"
        log(f"{dataset}: {count}, resized to it, such as {index.resized[0]}")
    return index


def _has_owners_files(root: Path, dataset: str, split_by: str) -> bool:
    """Return whether any of the owners' files exists."""
    if DATA_SETS[dataset].layout == "lines":
        return bool(text_files(image_folder(root, dataset).parent, splits_of(dataset, split_by)))
    return any((root / dataset).glob("refs(*")) or (root / dataset / "instances.json").exists()


def fit_masks(index: Index) -> None:
    """Set the sizes of images to those of their files, and resize masks of another size to their images.

    Missing and unreadable images keep their recorded size: loading or checking reports them.
    """
    images = [index.Imgs[image_id] for image_id in dict.fromkeys(ref["image_id"] for ref in index.data["refs"])]
    sizes = image_sizes(Path(index.IMAGE_DIR), [image["file_name"] for image in images])
    for image in images:
        size = sizes[image["file_name"]]
        if not isinstance(size, str):
            image["width"], image["height"] = size
    for ref in index.data["refs"]:
        image, (ann,) = index.Imgs[ref["image_id"]], index.objects_of(ref)
        size, mask_size = (image["width"], image["height"]), stored_mask_size(ann["segmentation"])
        if mask_size in (None, size) or isinstance(sizes[image["file_name"]], str):
            continue
        try:
            ann["segmentation"] = resize_segmentation(ann["segmentation"], size)
        except ValueError:
            continue  # invalid: reading the mask reports it
        index.resized.append(describe_resized(ref_name(ref), image["file_name"], mask_size, size))
