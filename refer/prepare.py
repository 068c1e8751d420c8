"""Download a data set or say where to get it, or check it.

    python -m refer.prepare --dataset refcoco --splitBy unc
    python -m refer.prepare --dataset refcocog --splitBy umd --annotations-only
    python -m refer.prepare --dataset refcoco --splitBy unc --check
    python -m refer.prepare --dataset refsegrs
    python -m refer.prepare --dataset jsonl --data train.jsonl val.jsonl --check

Valid files are kept; an interrupted download resumes. See docs/data.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from errors import UserError, answer_first, plain, run, user_message
from lib.arguments import Parser, seconds, worker_count
from lib.files import alone_in, follow, put_aside, write_atomically
from lib.options import add_flags
from lib.outputs import check_folder, make_folder
from refer.datasets import COCO_FOLDERS, DATA_SETS
from refer.splits import JSONL, MANUAL, default_split_by, splits_of


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="python -m refer.prepare", description="Download or check a data set.")
    add = parser.add_argument
    add_flags(parser, "--dataset", help=f"{', '.join(DATA_SETS)}; or {JSONL}, your own data, with --check")
    add_flags(parser, "--data")
    add_flags(parser, "--splitBy", help="how it is split; default: umd for refcocog, unc for most others")
    add("--refer_data_root", "--root", type=Path, default=Path("./refer/data"), help="folder of all data sets")
    add("--mirror", action="append", default=[], metavar="URL", help="folder of the archives, tried first; repeatable")
    add("--image-mirror", action="append", default=[], metavar="URL", help="folder of the images, tried first")
    add("--workers", type=worker_count, default=8, help="number of parallel downloads, or of processes for --check")
    add("--timeout", type=seconds, default=30.0, help="seconds to wait for a silent or very slow server")
    add("--annotations-only", action="store_true", help="do not download images")
    add("--check", action="store_true", help="only check the files, without network access")
    options = parser.parse_args(arguments)
    if not options.workers:
        parser.error("--workers must be above 0")
    if (options.dataset == JSONL) != bool(options.data_files):
        raise UserError(f"--dataset {JSONL} and --data FILE.jsonl belong together")
    if options.dataset == JSONL:
        if not options.check:
            raise UserError(f"--dataset {JSONL} is your own data, which need no preparation: add --check to check them")
        return options
    options.splitBy = options.splitBy or default_split_by(options.dataset)
    splits_of(options.dataset, options.splitBy)
    return options


if __name__ == "__main__":
    answer_first(parse_args)  # answers --help and mistakes in the flags before the imports below, which take seconds

from tqdm import tqdm

from lib.photo import ImageError, opened
from refer.archives import Limits, check_entries, damage, unpack_file
from refer.check import check_dataset, image_path, needed_images
from refer.download import MirrorError, Patience, discard, fetch_bytes, fetch_file, from_mirrors
from refer.files import Record, read_instances, read_refs, refs_as_json
from refer.jsonl import check_jsonl
from refer.obtain import OBTAINED, obtain
from refer.open import open_data_set
from refer.refer import REFER, Index

# URLs of the files. A mirror without {name} is a folder.
ANNOTATION_HOST = "https://bvisionweb1.cs.unc.edu/licheng/referit/data/{name}"
MIRRORS = {
    # The original host has not answered since 2022, so it is tried last. `id_` requests the file as it was stored.
    "annotations": (f"https://web.archive.org/web/2022id_/{ANNOTATION_HOST}", ANNOTATION_HOST),
    "images": ("http://images.cocodataset.org/train2014/{name}",),
}
MAX_ARCHIVE = 1 << 30  # bytes; ten times the largest archive
ANNOTATIONS = Limits(entries=10_000, unpacked=2 << 30, ratio=100)  # JSON and pickles shrink to a fifth
MAX_IMAGE = 32 << 20  # bytes
N_NAMED = 20  # failed images that a message lists
N_LOST = 50  # give up if so many images fail before the first success


def download_annotations(root: Path, dataset: str, split_by: str, mirrors: list[str], patience: Patience) -> REFER:
    """Download the annotations of a data set if they are missing, and return their index.

    mirrors: tried before `MIRRORS`. Valid files are kept; damaged ones are renamed to `NAME.damaged`. If no mirror has
    the files, raises UserError with the failure of each.
    """
    folder = root / dataset
    names = ("instances.json", f"refs({split_by}).p")
    with alone_in(root, lambda: print(f"another process downloads into {root}; waiting for it", flush=True)):
        missing = [name for name in names if not _is_good(folder / name)]
        if missing:
            check_folder(folder, "--refer_data_root")
            _fetch_annotations(root, dataset, split_by, missing, mirrors, patience)
        refer = REFER(root, dataset, split_by)
        _write_json_copy(refer.refs_file)
    return refer


def _is_good(path: Path) -> bool:
    try:
        read_instances(path) if path.suffix == ".json" else read_refs(path)
    except UserError as error:
        if path.exists():
            print(plain(f"not used: {user_message(error)}"))
        return False
    return True


def _fetch_annotations(
    root: Path, dataset: str, split_by: str, missing: list[str], mirrors: list[str], patience: Patience
) -> None:
    archive = f"{dataset}.zip"
    part = root / f".{archive}.part"

    def fetch(url: str, is_second: bool = False) -> None:
        print(f"fetching {url}", flush=True)
        resumed = fetch_file(url, part, MAX_ARCHIVE, patience)
        try:
            unpack(part, root, dataset, split_by, missing)
        except ValueError as error:
            discard(part)
            if is_second or not resumed:
                raise MirrorError(f"it sends no valid {archive}: {error}") from error
            fetch(url, is_second=True)  # the parts of two downloads may not fit together: download all of it

    urls = addresses([*mirrors, *MIRRORS["annotations"]], archive)
    try:
        from_mirrors(urls, fetch, lambda line: print(plain(line)))
    except MirrorError as error:
        raise UserError(
            f"no mirror has {archive}:\n{error}\nGive another with --mirror, or put {' and '.join(missing)} by hand "
            f"into {root / dataset} (they are in the folder {dataset} of {archive}). {MANUAL}"
        ) from error
    discard(part)


def addresses(mirrors: list[str], name: str) -> list[str]:
    """Return the URLs of a file on all mirrors."""
    name = quote(name, safe="+/()")
    return [
        mirror.replace("{name}", name) if "{name}" in mirror else f"{mirror.rstrip('/')}/{name}"
        for mirror in dict.fromkeys(mirrors)
    ]


# ---------------------------------------------------------------- archives


def unpack(archive: Path, root: Path, dataset: str, split_by: str, missing: list[str]) -> None:
    """Unpack the missing files of a data set from its archive into `root`, after checking both of its files.

    Unpacks nothing else. Raises ValueError with the problem if the archive is not valid, and UserError if a file cannot
    be written.
    """
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{dataset}.", dir=root))
    except OSError as error:
        raise UserError(f"cannot make a folder in {root} ({error})") from error
    try:
        with damage(), zipfile.ZipFile(archive) as content:
            check_entries(content, ANNOTATIONS)
            for name in ("instances.json", f"refs({split_by}).p"):
                unpack_file(content, f"{dataset}/{name}", staging / dataset / name)
        REFER(staging, dataset, split_by)
        for name in missing:
            _place(staging / dataset / name, root / dataset / name)
    except UserError as error:
        if str(staging) not in str(error) or isinstance(error.__cause__, OSError):  # the archive is not the cause
            raise
        raise ValueError(str(error).replace(f"{staging}{os.sep}", "")) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    with source.open("rb") as content:
        _put(target, lambda file: shutil.copyfileobj(content, file), is_good=lambda: False)


def _put(target: Path, write: Callable[[BinaryIO], object], is_good: Callable[[], bool]) -> None:
    """Write a file, or the target of a link; rename an existing file to `NAME.damaged` just before.

    is_good: whether the existing file is valid, because another process has written it meanwhile.
    """
    target = follow(target)
    write_atomically(target, write, lambda: None if is_good() else set_aside(target))


def set_aside(path: Path) -> None:
    """Rename an invalid file, if it exists, to `NAME.damaged`."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        aside = put_aside(path, "damaged")
    except FileNotFoundError:
        return  # another process was faster
    print(f"{path} was not valid; it is now {aside.name}")


def _write_json_copy(refs_file: Path) -> None:
    """Write the refs as JSON next to their pickle, unless there is a copy of exactly this pickle."""
    if not refs_file.exists():
        return  # there is only the JSON
    try:
        content = refs_as_json(refs_file)
    except ValueError as error:
        print(f"no JSON copy is written: {error}")
        return
    target = refs_file.with_suffix(".json")
    if not target.exists() or target.read_bytes() != content:
        write_atomically(target, lambda file: file.write(content))


# ---------------------------------------------------------------- images


def fetch_images(refer: Index, mirrors: list[str], workers: int, patience: Patience) -> None:
    """Download every image of the data set that is missing or does not have its recorded size.

    workers: number of parallel downloads. Raises UserError with the images that no mirror has.
    """
    records = needed_images(refer)
    wanted = [image for image in records if not _has_size(image_path(refer, image), image)]
    print(f"{len(records) - len(wanted):,} of {len(records):,} images are already there", flush=True)
    if wanted:
        check_folder(refer.IMAGE_DIR, "--refer_data_root")
    failed: list[str] = []
    n_fetched = 0
    pool = ThreadPoolExecutor(workers)
    try:
        waiting = [pool.submit(_fetch_image, refer, image, mirrors, patience) for image in wanted]
        for future in tqdm(as_completed(waiting), total=len(wanted), unit="image", disable=not sys.stderr.isatty()):
            try:
                future.result()
                n_fetched += 1
            except MirrorError as error:
                failed.append(str(error))
            if not n_fetched and len(failed) >= N_LOST:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        more = [f"  and {len(failed) - N_NAMED:,} more"] if len(failed) > N_NAMED else []
        raise UserError(
            "\n".join([f"{len(wanted) - n_fetched:,} images could not be downloaded:", *failed[:N_NAMED], *more])
            + "\nRun the command again, give another --image-mirror, or put them by hand into "
            + f"{refer.IMAGE_DIR}. {MANUAL}"
        )


def _has_size(path: Path, image: Record) -> bool:
    try:
        with opened(path) as content:
            return content.size == (image["width"], image["height"])
    except ImageError:
        return False


def _fetch_image(refer: Index, image: Record, mirrors: list[str], patience: Patience) -> None:
    path = image_path(refer, image)

    def fetch(url: str) -> bytes:
        content = fetch_bytes(url, MAX_IMAGE, patience)
        _check_jpeg(content, image)
        return content

    urls = addresses([*mirrors, *MIRRORS["images"]], image["file_name"])
    content = from_mirrors(urls, fetch, lambda line: None)
    _put(path, lambda file: file.write(content), is_good=lambda: _has_size(path, image))


def _check_jpeg(content: bytes, image: Record) -> None:
    try:
        with opened(BytesIO(content), ["JPEG"]) as jpeg:
            size, expected = jpeg.size, (image["width"], image["height"])
            if size == expected:
                jpeg.load()
    except ImageError as error:
        raise MirrorError(f"it sends no complete JPEG ({error})") from error
    if size != expected:
        raise MirrorError(f"it sends an image of {size}, not {expected} pixels")


# ---------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> None:
    """Download or check the data set as the flags say."""
    options = parse_args(arguments)
    root, patience = options.refer_data_root, Patience(options.timeout)
    if options.check:
        if options.dataset == JSONL:
            problems = check_jsonl(options.data_files)
        else:
            problems = check_dataset(open_data_set(root, options.dataset, options.splitBy), options.workers)
        if problems:
            raise UserError("\n".join(["the data set has problems:", *problems, MANUAL]))
        print("the data set is complete and valid")
        return
    make_folder(root, "--refer_data_root")
    refer = get(root, options.dataset, options.splitBy, options.mirror, patience)
    if options.dataset == "refclef":
        print(
            f"the images of {options.dataset} (saiapr_tc-12) cannot be downloaded one by one: unpack them by hand into "
            f"{refer.IMAGE_DIR}, then run this again with --check"
        )
    elif DATA_SETS[options.dataset].images == COCO_FOLDERS and not options.annotations_only:
        fetch_images(refer, options.image_mirror, options.workers, patience)
    print(f"{options.dataset} ({options.splitBy}) is in {root}; check it with --check")


def get(root: Path, dataset: str, split_by: str, mirrors: list[str], patience: Patience) -> Index:
    """Download a data set's files except COCO's images, and return its index."""
    if dataset not in OBTAINED:
        return download_annotations(root, dataset, split_by, mirrors, patience)
    with alone_in(root, lambda: print(f"another process writes into {root}; waiting for it", flush=True)):
        refer = obtain(root, dataset, split_by)
        if refer.refs_file.suffix == ".p" and DATA_SETS[dataset].layout == "refer":
            _write_json_copy(refer.refs_file)
    return refer


if __name__ == "__main__":
    run(main)
