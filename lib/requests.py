"""Which sentences about which photos a command is asked for, and how the pictures about them are named.

Without PyTorch, as `predict_onnx.py` uses it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from errors import UserError, cut, few, few_lines, first_line, plain
from lib.files import cut_name
from lib.outputs import is_same, make_folder
from lib.photo import READ, SUFFIXES, open_photo
from lib.texts import read_json_lines

SLUG_LENGTH, SLUG_BYTES = 40, 80  # maximum length of a sentence in a file name, in characters and in bytes
N_NAMED = 20  # files and sentences that a message lists


class Request(NamedTuple):
    """A sentence about a photo."""

    image: Path
    text: str
    number: int = 0  # its place among all requests of the command, in the names of its pictures


def pair(photos: Sequence[Path], texts: Sequence[str]) -> list[Request]:
    """Return a request for every pair of photo and sentence."""
    return [Request(*one, number) for number, one in enumerate(product(photos, texts))]


def find_photos(folder: Path, *, recursive: bool = False, left_out: Path) -> list[Path]:
    """Return the photos that `--image` names: one, or those in a folder. Raises UserError if there are none.

    recursive: also those in folders of the folder, except in `left_out`.
    """
    try:
        if not folder.is_dir():
            return [folder]
        return photos_in(folder, files_below(folder, left_out) if recursive else list(folder.iterdir()))
    except OSError as error:
        raise UserError(f"--image {folder} cannot be read ({error.strerror})") from error


def files_below(folder: Path, left_out: Path) -> list[Path]:
    """Return the files in a folder and the folders in it, except in `left_out`; links to folders are not followed."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not is_same(Path(parent, name), left_out)]
        found += [Path(parent, name) for name in names]
    return found


def _raise(error: OSError) -> None:
    raise error


def photos_in(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return the photos among the files of a folder, sorted by name, and print the names of the others.

    Raises UserError if there is no photo.
    """
    photos: list[Path] = []
    others: list[Path] = []
    for path in sorted(files):
        # A dangling link counts as a photo, which will be reported as unreadable.
        is_photo = path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())
        (photos if is_photo else others).append(path)
    if others:
        names = few([path.name for path in others], N_NAMED)
        print(plain(f"skipped, because their names are not those of photos: {names}"), file=sys.stderr)
    if not photos:
        raise UserError(f"the folder {folder} has no photo ({', '.join(sorted(READ))})")
    return photos


def read_requests(path: Path) -> list[Request]:
    """Return the requests of a JSONL file; image paths are relative to it. Raises UserError for an invalid line."""
    requests: list[Request] = []
    for number, record in read_json_lines(path):
        try:
            image, text = record["image"], record["text"]
        except (KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number} is not {{"image": …, "text": …}} ({error!r})') from error
        if not (isinstance(image, str) and isinstance(text, str)):
            raise UserError(f"{path}, line {number}: image and text must be strings")
        if not text.strip():
            raise UserError(f"{path}, line {number}: the text is empty: describe an object")
        requests.append(Request(path.parent / image, text, len(requests)))
    if not requests:
        raise UserError(f"{path} has no request")
    return requests


def requests_of(args: argparse.Namespace) -> list[Request]:
    """Return what the flags of `lib.asked` ask for. Raises UserError as `read_requests` and `find_photos` do."""
    if args.jsonl:
        return read_requests(args.jsonl)
    return pair(find_photos(args.image, recursive=args.recursive, left_out=args.out), args.text)


def batches(
    requests: Sequence[Request], size: int, failures: dict[Path, UserError]
) -> Iterator[list[tuple[Request, Image.Image]]]:
    """Yield batches of requests with their photos, which are read in the background, once for adjacent requests.

    failures: receives the photos that cannot be read; their requests are skipped.
    """
    groups = [requests[start : start + size] for start in range(0, len(requests), size)]
    with ThreadPoolExecutor(2) as pool:
        held: dict[Path, Future[Image.Image]] = {}
        for group, next_group in zip(groups, [*groups[1:], []], strict=True):
            wanted = dict.fromkeys(request.image for request in chain(group, next_group))
            held = {path: held.get(path) or pool.submit(open_photo, path) for path in wanted}
            batch = []
            for request in group:
                try:
                    batch.append((request, held[request.image].result()))
                except UserError as error:
                    failures[request.image] = error
            if batch:
                yield batch


@contextmanager
def skipping(image: Path, failures: dict[Path, UserError]) -> Iterator[None]:
    """Let work on a photo fail, such as on one too large for the memory, as others may be smaller; `failures` tells it.

    A UserError is raised as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failures[image] = UserError(f"{image} cannot be segmented ({first_line(error)})")


def skipped_lines(failures: Mapping[Path, UserError]) -> list[str]:
    """Return the lines of a message about photos that had to be skipped; [] if there are none."""
    if not failures:
        return []
    reasons = few_lines([f"  {reason}" for reason in failures.values()], N_NAMED)
    return [f"{len(failures)} photos were skipped:", *reasons]


def print_unread(ends: Mapping[str, str]) -> None:
    """Print which sentences are too long for the network.

    ends: by sentence, its end that the network does not read; "" if it reads all.
    """
    unread = {text: end for text, end in ends.items() if end}
    lines = [f"{cut(text)} is too long for the network, which ignores {cut(end)}" for text, end in unread.items()]
    for line in few_lines(lines, N_NAMED):
        print(plain(line), file=sys.stderr)


def make_folders(out: Path, names: Sequence[str], requests: Sequence[Request], taken: Collection[str]) -> None:
    """Make folders of pictures in the folder `--out`.

    names: of these folders. taken: the names that the command may use there, now or later. Raises UserError if a folder
    cannot be made or written to, or if pictures would be mixed with requested photos.
    """
    for name in names:
        make_folder(out / name, "--out")
    for parent in {request.image.parent for request in requests}:
        if any(is_same(out / name, parent) for name in taken):
            raise UserError(f"--out {out} would be mixed with the photos in {parent}: choose another folder")


def picture_name(request: Request, limit: int) -> str:
    """Return a file name of at most `limit` bytes: number, photo and sentence, truncated if necessary."""
    slug = re.sub(r"\W+", "-", request.text.lower()).strip("-")[:SLUG_LENGTH]
    encoding = sys.getfilesystemencoding()
    end = f"_{cut_name(slug.encode(encoding, 'ignore').decode(encoding), SLUG_BYTES)}.png"
    return cut_name(f"{request.number:06d}_{request.image.stem}", limit - len(os.fsencode(end))) + end
