"""Writes a sample data set: drawn scenes and sentences about them, in the layout of the real data sets."""

from __future__ import annotations

import json
import os
import string
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data.sample import expressions, grefcoco, refcoco, risbench
from data.sample.records import COCO_IMAGES, Kind, Record, make_scene
from data.sample.versions import VERSION
from errors import UserError
from lib.files import replacing
from lib.outputs import check_folder
from refer.datasets import SAMPLE_NOTE

NOTE = SAMPLE_NOTE  # holds the options
IMAGE_FOLDER = COCO_IMAGES
# By the data set whose layout they have; `refcoco` is for refcoco, refcoco+ and refcocog together.
KINDS: Mapping[str, Kind] = {"refcoco": refcoco.kind(hard=False), "grefcoco": grefcoco.KIND, "risbench": risbench.KIND}
KINDS_V2: Mapping[str, Kind] = {"refcoco": refcoco.KIND_V2, "grefcoco": grefcoco.KIND_V2}
VOCABULARY_SIZE = 1000


def make_sample(
    root: str | Path,
    images: int = 2000,
    seed: int = 0,
    *,
    hard: bool = False,
    like: str = "refcoco",
    version: int | None = None,
) -> None:
    """Write the sample data set into the folder `root`, which must be missing, empty or already hold it.

    images: number of training images; every other split gets a tenth, at least 8. hard (of `refcoco` in version 1
    alone): see `data.sample`. like: a key of `KINDS`. version: of `VERSIONS`; None: version 1 for what has no other, or
    else the default. Raises UserError if the folder holds something else or cannot be written.
    """
    root = Path(os.path.realpath(root))
    if version is None:
        version = 1 if hard or like not in KINDS_V2 else VERSION
    kind = choose_kind(like, version, hard=hard)
    more = ({"hard": True} if hard else {}) | ({} if like == "refcoco" else {"like": like})
    options = json.dumps({"version": version, "images": images, "seed": seed} | more) + "\n"
    if images < 1:
        raise UserError(f"the sample data set needs at least 1 training image, not {images}")
    with os_errors_as_user_errors(root):
        if is_complete(root, options):
            print(f"{root} already holds this sample data set; left as it is")
            return
        check_folder(root, "--root")
        with replacing(root) as folder:
            scenes = write_all(folder, options, images, seed, kind)
    print(f"{root}: {len(scenes)} images, {sum(len(s['objects']) for s in scenes)} objects")


def choose_kind(like: str, version: int, *, hard: bool) -> Kind:
    """Return the kind of data with this layout, version and hardness; UserError if it is not drawn."""
    if version == 1:
        return refcoco.kind(hard=True) if hard else KINDS[like]
    if version != 2:
        raise UserError(f"there is no version {version} of the sample data")
    if hard or like not in KINDS_V2:
        raise UserError(f"version {version} is drawn for {' and '.join(KINDS_V2)}, without hard")
    return KINDS_V2[like]


def write_all(folder: Path, options: str, images: int, seed: int, kind: Kind) -> list[Record]:
    """Write the data set into a new folder; return its scenes. options: content of `sample.json`."""
    (folder / kind.image).parent.mkdir(parents=True)
    scenes = make_scenes(folder, images, seed, kind)
    kind.write_files(folder, scenes)
    (folder / "vocab.txt").write_text("\n".join(vocabulary(kind.words)) + "\n", encoding="utf-8")
    (folder / NOTE).write_text(options, encoding="utf-8")
    return scenes


def is_complete(root: Path, options: str) -> bool:
    """Return whether the folder already holds the data set of these options; UserError if it holds anything else."""
    if root.is_mount():
        raise UserError(f"{root} is the root of a disk and cannot be replaced; give a folder in it as --root")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / NOTE
    if not note.is_file():
        raise UserError(f"{root} is not an empty folder and holds no sample data set; give another --root")
    present = note.read_text(encoding="utf-8", errors="replace")
    if present != options:
        raise UserError(
            f"{root} holds a sample data set made with {present.strip()[:200]}, not {options.strip()}; "
            "remove it or give another --root"
        )
    return True


@contextmanager
def os_errors_as_user_errors(root: Path) -> Iterator[None]:
    """Turn an OSError, as from a full disk or a name that is too long, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--root {root} cannot be written ({error.strerror or error}); give another") from error


def make_scenes(folder: Path, images: int, seed: int, kind: Kind) -> list[Record]:
    """Draw every image into the folder; return one record per image, see `make_scene`."""
    make = partial(make_scene, folder, seed, kind)
    numbers, splits = zip(*numbered_splits(images, kind), strict=True)
    # A small set takes less time than starting processes.
    if len(splits) < 200:
        return list(map(make, numbers, splits))
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(make, numbers, splits, chunksize=50))


def numbered_splits(images: int, kind: Kind) -> list[tuple[int, str]]:
    """Return the number of every image, counted from 1, with its split; images: see `make_sample`."""
    other = max(8, round(images / 10))
    splits = [split for split in kind.n_objects for _ in range(images if split == "train" else other)]
    return list(enumerate(splits, start=1))


def vocabulary(more: Sequence[str] = ()) -> list[str]:
    """Return a BERT uncased WordPiece vocabulary: special tokens, characters, the words of the sentences.

    more: words of one kind of data; last, so that all other words have the same id in all vocabularies.
    """
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    known += [word for word in expressions.vocabulary() if word not in characters]
    known += [word for word in more if word not in known]
    return known + [f"[unused{i}]" for i in range(VOCABULARY_SIZE - len(known))]
