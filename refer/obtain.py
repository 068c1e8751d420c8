"""Get the data sets beyond RefCOCO's, by download or by instructions.

RefSegRS (one zip) and RefCOCO-M (parquet files) are downloaded from the Hugging Face hub. The others are on cloud
drives that refuse programs: a message gives the address, the size and the target folder. Files are converted once, so
that reading takes seconds.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from errors import UserError, plain, user_message
from lib.hub import download_data
from refer.archives import Limits, check_entries, damage, unpack_file
from refer.datasets import DATA_SETS, image_folder
from refer.lines import convert_masks, text_files
from refer.open import open_data_set
from refer.passed_on import find_files
from refer.refcocom import TooFewError, convert
from refer.refer import Index
from refer.rows import keep_sizes
from refer.splits import counts_of, splits_of


class Origin(NamedTuple):
    """The source of a data set."""

    address: str  # with links to the files, or a repository of the hub
    size: str
    files: tuple[str, ...]  # and folders, below DATA_ROOT
    first: str = ""  # prerequisites


COCO = "COCO's train2014 (13 GB) is downloaded by this command once these files are there"
OBTAINED = {
    "rrsisd": Origin(
        "https://github.com/Lsan2401/RMSIN names the folder on Google Drive and Baidu",
        "about 5 GB",
        ("rrsisd/refs(unc).p", "rrsisd/instances.json", "images/rrsisd/JPEGImages/00001.jpg …"),
    ),
    "refsegrs": Origin(
        "JessicaYuan/RefSegRS", "2.97 GB", ("RefSegRS/images", "RefSegRS/masks", "RefSegRS/output_phrase_train.txt …")
    ),
    "risbench": Origin(
        "https://github.com/HIT-SIRS/CroBIM names the folder on Baidu",
        "52,472 images of 512×512 with their masks",
        ("RISBench_dataset/img_rgb", "RISBench_dataset/mask", "RISBench_dataset/output_phrase_train.txt …"),
    ),
    "grefcoco": Origin(
        "https://github.com/henghuiding/gRefCOCO names the cloud drives",
        "size unknown",
        ("grefcoco/grefs(unc).json", "grefcoco/instances.json"),
        COCO,
    ),
    "refzom": Origin(
        "https://github.com/toggle1995/RIS-DMMI names the cloud drive",
        "size unknown, but COCO's train2014 and val2014 have 13 and 6 GB",
        ("ref-zom/refs(final).p", "ref-zom/instances.json", "images/trainval2014 (both folders of COCO in one)"),
    ),
    "refcocom": Origin("moondream/refcoco-m", "two parquet files, size unknown", ("refcocom/*.parquet",)),
    "arefcoco": Origin(
        "the page of aRefCOCO's authors names it",
        "size unknown",
        ("arefcoco/arefcoco.json",),
        "its masks are those of refcoco (unc) and refcocog (umd): get these with this command as well",
    ),
}
# For images and masks. An empty mask compresses to almost nothing, hence the high ratio.
IMAGES = Limits(entries=100_000, unpacked=64 << 30, ratio=100_000)


def obtain(root: Path, dataset: str, split_by: str) -> Index:
    """Return the index of a data set of OBTAINED, after downloading and converting its files if possible.

    Raises UserError, with the source of the data set, if it is missing and cannot be downloaded.
    """
    if dataset == "refsegrs":
        _get_refsegrs(root)
    if dataset == "refcocom":
        _get_refcocom(root)
    try:
        index = open_data_set(root, dataset, split_by)
    except UserError as error:
        raise UserError(f"{user_message(error)}\n{advice(root, dataset)}") from error
    if text_files(image_folder(root, dataset).parent, splits_of(dataset, split_by)) and DATA_SETS[dataset].lines:
        convert_masks(root, dataset, split_by)
    elif DATA_SETS[dataset].passed_on:
        keep_sizes(Path(index.IMAGE_DIR), [image["file_name"] for image in index.data["images"]])
    return index


def advice(root: Path, dataset: str) -> str:
    """Return the source of a data set, its size, and its target paths, as text."""
    origin = OBTAINED[dataset]
    hub = "" if origin.address.startswith(("http", "the")) else "https://huggingface.co/datasets/"
    targets = "\n".join(f"  {root / name}" for name in origin.files)
    first = f"\n{origin.first[0].upper()}{origin.first[1:]}." if origin.first else ""
    return f"Where to get {dataset}: {hub}{origin.address} ({origin.size}). It belongs to\n{targets}{first}"


def _get_refsegrs(root: Path) -> None:
    """Download and unpack RefSegRS's archive, unless all its files of lines exist."""
    base, splits = image_folder(root, "refsegrs").parent, splits_of("refsegrs", "phrases")
    if len(text_files(base, splits)) == len(splits) or find_files(root, "refsegrs", "phrases"):
        return
    archives = sorted(base.glob("*.zip"))
    if not archives:
        print(f"fetching {OBTAINED['refsegrs'].address} from the hub", flush=True)
        archives = download_data(OBTAINED["refsegrs"].address, ".zip", base, advice(root, "refsegrs"))
    for archive in archives:
        try:
            unpack_lines(archive, base)
        except ValueError as error:
            text = f"{archive} is not RefSegRS's archive: {error}. Delete it, and it is downloaded again"
            raise UserError(f"{text}\n{advice(root, 'refsegrs')}") from error
        print(plain(f"{archive} is unpacked and no longer needed"))


def unpack_lines(archive: Path, base: Path) -> None:
    """Unpack images, masks and lines of text from any folder of the archive. Existing files are kept.

    Raises ValueError for an invalid archive.
    """
    with damage(), zipfile.ZipFile(archive) as content:
        check_entries(content, IMAGES)
        paths = [PurePosixPath(entry.filename) for entry in content.infolist() if not entry.is_dir()]
        texts = [path for path in paths if path.name == "output_phrase_train.txt"]
        if len(texts) != 1:
            raise ValueError(f"it has {len(texts)} files output_phrase_train.txt, not one")
        folder = texts[0].parent
        # The lines come last: if they exist, unpacking was complete.
        for path in sorted(paths, key=lambda path: path.name.startswith("output_phrase_")):
            kind = path.parent.relative_to(folder) if path.is_relative_to(folder) else None
            is_text = kind == PurePosixPath() and path.name.startswith("output_phrase_")
            if is_text or kind in (PurePosixPath("images"), PurePosixPath("masks")):
                target = base / path.relative_to(folder)
                if not target.exists() or target.stat().st_size != content.getinfo(str(path)).file_size:
                    _refuse_to_replace(target)
                    unpack_file(content, str(path), target)


def _refuse_to_replace(target: Path) -> None:
    """Raise ValueError if a file of another size exists."""
    if target.exists():
        raise ValueError(f"{target} exists and has another size: move it away to unpack the archive's file")


def _get_refcocom(root: Path) -> None:
    """Convert RefCOCO-M's parquet files once, after downloading missing ones."""
    folder = root / "refcocom"
    if (folder / "instances.json").exists() and (folder / "refs(unc).json").exists():
        return
    published = counts_of("refcocom", "unc")["val"][0] or 0
    try:
        convert(root, published)
    except TooFewError as error:
        print(plain(user_message(error)))
        print(f"fetching {OBTAINED['refcocom'].address} from the hub", flush=True)
        download_data(OBTAINED["refcocom"].address, ".parquet", folder, advice(root, "refcocom"))
        convert(root, published)
