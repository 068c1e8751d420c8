"""`--cache FILE.h5`: resized images and masks, so that epochs do not decode them again.

A cache holds all splits of one data set at one size: `images` (I, S, S, 3) uint8, every image that has an object, and
`masks` (M, S, ceil(S / 8)) uint8, every object's mask with eight pixels per byte. The order of the rows follows the
REFER index. A fingerprint of the source data detects a stale cache. RefCOCO at 480 pixels, 19,994 images and 50,000
objects, takes 15.3 GB.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import platform
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import utils
from data.objects import ObjectRecord, describe_object, image_error, open_image_of
from data.transforms import PairTransform
from errors import UserError
from lib.files import follow, replacing, temporary_prefix
from lib.photo import Pixels
from refer.files import Record
from refer.masks import decode_parts
from refer.refer import Index
from refer.splits import title_of

FORMAT_VERSION = 1
N_COMPARED = 8  # images to compare with their files whenever a cache is opened
HEARTBEAT = 1.0  # seconds between two messages to the waiting processes, which time out after half an hour
ADVICE = "Delete it, and it is built again, or name another file with --cache"


def open_cache(path: str | Path, refer: Index, size: int, workers: int) -> Cache:
    """Return the cache of a data set; build it first if there is no file `path`.

    size: side of the resized images in pixels. workers: processes that decode and resize, at least one. All processes
    of a training must call this together; one builds the file for all that can see it. Raises UserError if the file is
    not the cache of this data set at this size, is out of date or damaged, or cannot be written. A signal to stop ends
    the building without leaving a file, and is then passed on; if it does not end the process, utils.Stopped is raised.
    """
    path, contents = Path(path), Contents(refer, size)
    layout = contents.layout()
    with utils.StopSignal() as stop:
        stopped = _build_in_turn(path, contents, layout, workers, stop)
    stop.pass_on()
    if stopped:
        raise utils.Stopped(f"stopped by {stop.name or 'a signal'}: the cache {path} is not built, nothing is changed")
    cache = Cache(path, layout)
    cache.compare(contents)
    return cache


def _build_in_turn(path: Path, contents: Contents, layout: Layout, workers: int, stop: utils.StopSignal) -> bool:
    """Build a cache in every process that does not see one. Returns whether a signal stopped any process.

    The processes take turns: on several machines `path` may be on a local disk, where the first process builds.
    """
    for builder in range(utils.world_size()):
        stopped = False
        if utils.rank() == builder:
            try:
                if not _exists(path):
                    build_cache(path, contents, layout, workers, Heartbeat(stop))
            except utils.Stopped:
                stopped = True
            utils.any_process(False)
        else:
            while utils.any_process(False):
                stop.agreed()
        if utils.any_process(stopped):
            return True
    return False


class Heartbeat:
    """Tells the waiting processes from time to time that this one is alive, and learns whether they should stop."""

    def __init__(self, stop: utils.StopSignal) -> None:
        self.stop = stop
        self.newest = time.monotonic()

    def __call__(self) -> None:
        """Raise utils.Stopped if any process was asked to stop."""
        stopped = self.stop.came
        if not stopped and time.monotonic() - self.newest > HEARTBEAT:
            utils.any_process(True)
            stopped = self.stop.agreed()
            self.newest = time.monotonic()
        if stopped:
            raise utils.Stopped


class Rows(NamedTuple):
    """The row numbers of an object in a cache."""

    image: int
    mask: int


class Array(NamedTuple):
    """One array of a cache."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]


class Layout(NamedTuple):
    """The required content of a data set's cache."""

    data: str  # name and folder of the data set, for messages
    size: int  # side of the images in pixels
    n_images: int
    n_masks: int
    source: str  # fingerprint of the source data, 64 hex digits

    @property
    def arrays(self) -> dict[str, Array]:
        """Every array by its name in the file."""
        image, mask = (self.size, self.size, 3), (self.size, -(-self.size // 8))
        return {
            "images": Array((self.n_images, *image), "u1", (1, *image)),
            "masks": Array((self.n_masks, *mask), "u1", (1, *mask)),
            "images_crc32": Array((self.n_images,), "<u4", (self.n_images,)),
            "masks_crc32": Array((self.n_masks,), "<u4", (self.n_masks,)),
        }

    @property
    def n_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for array in self.arrays.values())

    @property
    def n_reserved(self) -> int:
        """Bytes that the file takes while it is built; HDF5's index takes less than 64 for a row."""
        return self.n_bytes + 64 * (self.n_images + self.n_masks) + 2**16


def find_rows(refer: Index, refs: Iterable[Record]) -> list[Rows]:
    """Return the rows of these objects in a cache; images and masks are in the order of all refs."""
    masks = {ref_id: row for row, ref_id in enumerate(refer.Refs)}
    in_order = dict.fromkeys(ref["image_id"] for ref in refer.Refs.values())
    images = {image_id: row for row, image_id in enumerate(in_order)}
    return [Rows(images[ref["image_id"]], masks[ref["ref_id"]]) for ref in refs]


class Contents(Dataset[tuple[Pixels, Pixels]]):
    """The content of a cache: every image of all splits of a data set, with the masks of its objects.

    Item i is row i of the cache: the image (S, S, 3) and its objects' masks (objects, S, ceil(S / 8)), both uint8.
    """

    def __init__(self, refer: Index, size: int) -> None:
        self.name = f"{refer.dataset} ({refer.splitBy})"
        self.title = title_of(refer.dataset, refer.splitBy)
        self.root = refer.ROOT_DIR
        self.folder = Path(refer.IMAGE_DIR)
        self.transform = PairTransform(size)
        refs = list(refer.Refs.values())
        by_image: dict[int, list[tuple[int, ObjectRecord]]] = {}
        for ref, rows in zip(refs, find_rows(refer, refs), strict=True):
            by_image.setdefault(rows.image, []).append((rows.mask, describe_object(refer, ref)))
        self.objects = list(by_image.values())  # by image: mask row and record of every object in it

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, row: int) -> tuple[Pixels, Pixels]:
        """Decode and resize; UserError if the image is missing, damaged, or differs in size from its masks."""
        described = [record for _, record in self.objects[row]]
        image = self.transform.resize_image(open_image_of(described[0], self.folder))
        masks = [self.transform.resize_mask(decode_parts(record.parts)) for record in described]
        return image, np.packbits(np.stack(masks), axis=-1)

    def image_path(self, row: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.objects[row][0][1].file_name

    def layout(self) -> Layout:
        """Return the layout of the cache. UserError if an image is missing."""
        data, n_masks = f"{self.title} in {self.root}", sum(map(len, self.objects))
        return Layout(data, self.transform.size, len(self.objects), n_masks, self.fingerprint())

    def fingerprint(self) -> str:
        """Return 64 hex digits that change with size, names, recorded sizes, masks, file sizes in bytes, and `as_seen`.

        Modification times are left out, so that a copy on another disk is accepted.
        """
        digest = hashlib.sha256(json.dumps([self.name, self.transform.size]).encode())
        for row, objects in enumerate(self.objects):
            described = [(mask_row, record.identity()) for mask_row, record in objects]
            digest.update(json.dumps([_file_size(self.image_path(row)), described], default=str).encode())
        return digest.hexdigest()


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise image_error(path, error) from error


# ---------------------------------------------------------------- reading


class Cache:
    """Reads images and masks from a cache file. The file is checked when it is opened, every row when it is read.

    Each process opens the file when it first reads, because forked workers must not share HDF5's state.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._file: h5py.File | None = None
        self._arrays: dict[str, h5py.Dataset] = {}
        self._checksums: dict[str, Pixels] = {}
        self._process = 0  # id of the process that opened the file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_arrays": {}, "_checksums": {}, "_process": 0}

    rows = staticmethod(find_rows)

    @property
    def size(self) -> int:
        """The side of the images in pixels."""
        return self.layout.size

    def image(self, row: int) -> Pixels:
        """Return an image (S, S, 3) uint8. UserError if the file is damaged or not this cache."""
        return self._read("images", row)

    def mask(self, row: int) -> Pixels:
        """Return an object's mask (S, S) uint8 of 0 and 1. UserError as for `image`."""
        return np.unpackbits(self._read("masks", row), axis=-1, count=self.size)

    def compare(self, contents: Contents) -> None:
        """Raise UserError if one of a few images, or a mask in it, differs from what its file gives now.

        This detects files whose content changed but not their length, and libraries that resize differently.
        """
        for row in sorted({number * (len(contents) - 1) // (N_COMPARED - 1) for number in range(N_COMPARED)}):
            image, masks = contents[row]
            cached = [self._read("masks", mask_row) for mask_row, _ in contents.objects[row]]
            if not (np.array_equal(image, self.image(row)) and np.array_equal(masks, cached)):
                raise self._refusal(
                    f"does not hold the pixels that {contents.image_path(row)} and its masks give now: the image was "
                    "replaced, or Pillow or pycocotools has another version than when the cache was built"
                )
        self.close()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file, self._arrays = None, {}

    def _read(self, name: str, row: int) -> Pixels:
        if self._file is None or self._process != os.getpid():
            self.close()
            self._open()
        try:
            values: Pixels = self._arrays[name][row]
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make HDF5 raise almost anything
            raise self._refusal(f"is damaged or cannot be read ({_message(error)})") from error
        # HDF5's Fletcher-32 cannot tell white bytes (255) from zeros, nor a chunk that was lost to zeros as a whole.
        if zlib.crc32(values.data) != self._checksums[name][row]:
            raise self._refusal(f"is damaged: row {row} of its {name} does not match its checksum")
        return values

    def _open(self) -> None:
        if not self.path.is_file():
            raise UserError(f"--cache: {self.path} is no file (any more)")
        try:
            self._file = h5py.File(self.path, "r", locking=False)  # complete: it was renamed when it was finished
            self._process = os.getpid()
            problem = next(_problems(self._file, self.layout), None)
            if problem is None:
                self._arrays = {name: self._file[name] for name in ("images", "masks")}
                self._checksums = {name: self._file[f"{name}_crc32"][:] for name in self._arrays}
        except MemoryError:
            raise
        except Exception as error:
            self.close()
            raise self._refusal(f"is damaged or cannot be read ({_message(error)})") from error
        if problem:
            self.close()
            raise self._refusal(problem)

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"--cache: {self.path} {problem}. {ADVICE}")


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _problems(file: h5py.File, layout: Layout) -> Iterator[str]:
    """Yield the reasons why a file is not the cache; each check relies on the ones before."""
    version, finished = _attribute(file, "version", "<i8"), _attribute(file, "finished", "<i8")
    size, source = _attribute(file, "img_size", "<i8"), _attribute(file, "source", "S64")
    if version is None or size is None or source is None:
        yield "is no cache that train.py or test.py built"
    if version != FORMAT_VERSION:
        yield f"is of format version {version}, and this code reads version {FORMAT_VERSION}"
    if not finished:
        yield "was not built to its end"
    if size != layout.size:
        yield f"holds images of {size}×{size} pixels, and --img_size is {layout.size}"
    if source != layout.source.encode():
        what = "images, annotations, --overlap or the reading of photos differ"
        yield f"was built from other data than {layout.data} has now: {what}"
    for name, array in layout.arrays.items():
        if problem := _array_problem(file, name, array):
            yield f"is damaged or no cache that train.py or test.py built: its '{name}' {problem}"


def _attribute(file: h5py.File, name: str, dtype: str) -> Any:
    """Return an attribute of exactly this type and one value, or None."""
    if name not in file.attrs:
        return None
    stored = file.attrs.get_id(name)
    return file.attrs[name] if stored.dtype == dtype and stored.shape == () else None


def _array_problem(file: h5py.File, name: str, expected: Array) -> str | None:
    # Links, virtual and external arrays would make HDF5 open other files, and foreign filters load their libraries.
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return "is missing or a link to somewhere else"
    array = file[name]
    if not isinstance(array, h5py.Dataset):
        return "is no array"
    properties = array.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CHUNKED:
        return "is not stored in this file in chunks"
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if filters != [h5py.h5z.FILTER_FLETCHER32]:
        return "has no checksums, or is compressed"
    if (array.shape, array.dtype, array.chunks) != (expected.shape, np.dtype(expected.dtype), expected.chunk):
        return f"is {array.shape} {array.dtype}, expected {expected.shape} {np.dtype(expected.dtype)}"
    chunks = expected.shape[0] // expected.chunk[0]
    if array.id.get_num_chunks() != chunks:
        return f"has {array.id.get_num_chunks()} chunks of {chunks}"
    return None


# ---------------------------------------------------------------- building


def build_cache(path: Path, contents: Contents, layout: Layout, workers: int, progress: Callable[[], None]) -> None:
    """Write a cache. The file gets its name when it is complete; nothing is left behind after an error.

    workers: processes that decode and resize. progress: called after every image; it may raise to stop the building.
    Raises UserError if an image cannot be read or the file cannot be written.
    """
    utils.log(
        f"--cache: building {path}, {layout.n_images} images and {layout.n_masks} masks of {layout.size}×{layout.size} "
        f"pixels, {layout.n_bytes / 1e6:,.1f} MB"
    )
    atexit.register(utils.end_workers)
    loader = DataLoader(
        contents,
        batch_size=None,
        num_workers=max(1, workers),
        worker_init_fn=utils.ignore_stop_signals,
        generator=torch.Generator(),  # a separate one, so that loading does not change the global random state
    )
    resized = iter(loader)  # starts the workers now: they must not inherit HDF5's state of a file being written
    try:
        _remove_leftovers(path)
        # Another machine may be building the same cache in the same folder.
        with replacing(follow(path), platform.node()) as temporary, temporary.open("x+b") as file:
            _allocate(file, layout)
            _fill(temporary, contents, layout, resized, progress)
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # If writing fails, closing the file raises another error, whose context is the cause.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"--cache: {path} could not be written ({reason.strerror or _message(reason)}): it takes "
            f"{layout.n_bytes / 1e6:,.1f} MB. Make room, or name a file elsewhere with --cache"
        ) from error
    finally:
        # Otherwise the garbage collector would end the workers after an error. It waits for ten seconds, because they
        # ignore signals and are not told to stop.
        resized._shutdown_workers()  # type: ignore[attr-defined]  # PyTorch has no public name for it


def _remove_leftovers(path: Path) -> None:
    """Remove unfinished files of processes that were killed while building this cache on this machine."""
    path = follow(path)
    prefix = f"{temporary_prefix(path)}{platform.node()}."
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.[0-9a-f]{8}\.tmp")
    for leftover in path.parent.iterdir() if path.parent.is_dir() else []:
        if (match := pattern.fullmatch(leftover.name)) and not _is_running(int(match[1])):
            with suppress(OSError):
                leftover.unlink()


def _is_running(process: int) -> bool:
    """Return whether this machine runs another process of this id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return process != os.getpid()


def _allocate(file: BinaryIO, layout: Layout) -> None:
    """Write the empty arrays, and reserve the space of all rows.

    So a full disk or quota fails here, with an error; HDF5 would crash in the middle of the file.
    """
    memory = BytesIO()
    with h5py.File(memory, "w", libver="latest") as empty:
        # Not compressed: reading should cost no more than copying memory. libver: checksums for HDF5's metadata.
        for name, array in layout.arrays.items():
            empty.create_dataset(name, array.shape, array.dtype, chunks=array.chunk, fletcher32=True)
        empty.attrs["version"] = np.int64(FORMAT_VERSION)
        empty.attrs["img_size"] = np.int64(layout.size)
        empty.attrs["source"] = np.bytes_(layout.source)
    file.write(memory.getvalue())
    file.flush()
    if hasattr(os, "posix_fallocate"):  # macOS has none
        # The file is truncated to its real size when it is closed.
        os.posix_fallocate(file.fileno(), 0, layout.n_reserved)


def _fill(
    path: Path, contents: Contents, layout: Layout, resized: Iterable[Sequence[Any]], progress: Callable[[], None]
) -> None:
    bar = tqdm(resized, desc="building the cache", total=len(contents), leave=False, disable=not sys.stderr.isatty())
    checksums = {name: np.zeros(layout.arrays[name].shape[0], np.uint32) for name in ("images", "masks")}
    with h5py.File(path, "r+", libver="latest", locking=False) as file:
        arrays = {name: file[name] for name in checksums}

        def write(name: str, row: int, values: Pixels) -> None:
            arrays[name][row] = values
            checksums[name][row] = zlib.crc32(values.data)

        for row, (image, masks) in enumerate(bar):
            write("images", row, image.numpy())
            for (mask_row, _), mask in zip(contents.objects[row], masks.numpy(), strict=True):
                write("masks", mask_row, mask)
            progress()
        for name, values in checksums.items():
            file[f"{name}_crc32"][:] = values
        file.flush()
        file.attrs["finished"] = np.int64(1)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"--cache: {path} cannot be reached ({error.strerror})") from error
