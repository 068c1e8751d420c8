"""Answers to sentences about an image: by one or two networks, with what earlier ones showed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data.sample.drawings import knows_only_drawings
from errors import UserError
from lib.files import cut_name, write_atomically
from lib.photo import Pixels, resize_mask
from lib.pictures.overlay import PREDICTION_COLOUR, cut_out, outline_growth, overlay, overlay_several
from lib.pictures.panels import alignment_strip, captioned, with_legend
from lib.pictures.results import coco_record, describe_object
from lib.pictures.tiles import GAP, below
from lib.run_lengths import RunLengths, encode_mask
from lib.weights.checkpoint import HUB_WEIGHTS
from page.html import DRAWINGS_NOTE, caption, describe_prediction, describe_problem, describe_several, plain
from page.uploads import digest, read_upload, split_sentences
from predict import (
    SAMPLE_WEIGHTS,
    Model,
    Prediction,
    load,
    segment_batch,
    weigh_words,
)

SHOWN_SIDE = 1280  # longer side of the shown pictures in pixels
TRY_SIDE = 320  # longer side of the earlier results in pixels
MAX_TRIES = 24
NAME_BYTES = 100  # of a checkpoint's name in the names of files
WELL_TRIED = (UserError, torch.OutOfMemoryError)  # what an answer may raise


class Packed(NamedTuple):
    """A prediction that takes little memory."""

    code: RunLengths  # its mask
    rest: Prediction  # with an empty mask

    def unpack(self) -> Prediction:
        """Return the prediction."""
        mask: Pixels = coco_mask.decode({**self.code, "counts": str(self.code["counts"]).encode()})
        return self.rest._replace(mask=mask)


class Result(NamedTuple):
    """What a network predicts for some sentences."""

    checkpoint: str  # its name
    written: int  # when its file was, in ns
    objects: tuple[Packed, ...]  # of each sentence
    max_tokens: int  # of a sentence that it reads
    only_drawings: bool  # see `knows_only_drawings`


class Found(NamedTuple):
    """All that is needed to show an answer again."""

    path: str  # of the upload
    texts: tuple[str, ...]
    results: tuple[Result, ...]  # of one network, or of two
    is_drawing: bool  # whether the image is one of the sample data


class Try(NamedTuple):
    """An earlier answer in the gallery."""

    picture: Image.Image  # outlined, at most TRY_SIDE pixels
    caption: str
    found: Found


class Answer(NamedTuple):
    """What the page shows for some sentences."""

    outlined: tuple[Image.Image, ...]  # of each network; () after an error
    alignment: Image.Image | None  # the maps of all stages side by side; None after an error and without alignment
    verdict: str  # HTML: expected IoUs and the sentences, or the error
    found: Found | None  # None after an error
    tries: list[Try]  # of this session, newest first


class Checkpoints:
    """The weights in a folder. They are loaded on demand; those of the last answer stay loaded."""

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        self.folder = folder
        self.device = device
        self._lock = Lock()  # the server has several threads
        self._held: dict[tuple[str, int], Model] = {}  # by name and time of the file

    def names(self) -> list[str]:
        """Return the names of weight files and folders, those of the sample data first, then sorted.

        The list is empty if there are none, or if the folder does not exist.
        """
        if not self.folder.is_dir():
            return []
        names = (path.name for path in self.folder.iterdir() if is_checkpoint(path))
        return sorted(names, key=lambda name: (name != Path(SAMPLE_WEIGHTS).name, name))

    def choose(self, name: str | None) -> str:
        """Return a name of `names`; None, if the page has not loaded its list yet, means the first.

        Raises UserError if there are no such weights.
        """
        names = self.names()
        chosen = names[0] if name is None and names else name
        if chosen is None or chosen not in names:
            missing = "are no such weights any more" if name is not None else "are no weights (.pth, .safetensors)"
            raise UserError(f"in {self.folder} there {missing}: train a network or put one there, then reload the page")
        return chosen

    def segment(self, names: Sequence[str], photo: Image.Image, texts: Sequence[str]) -> tuple[Result, ...]:
        """Return the predictions for sentences about an RGB image, by the networks of some of `names`.

        Raises UserError if the weights cannot be read, or a sentence is empty.
        """
        with self._lock:
            self._drop_all_but(names)
            return tuple(self._segment(name, photo, texts) for name in names)

    def weigh(self, result: Result, photo: Image.Image, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """Return the words of each sentence with what the score loses without them, see `weigh_words`.

        result: of the same image and sentences. Raises UserError if its weights are gone or have been replaced.
        """
        name = self.choose(result.checkpoint)
        with self._lock:
            if self._written(name) != result.written:
                raise UserError(f"{name} has been replaced since this answer: press Find to ask the new one")
            if (name, result.written) not in self._held:
                self._drop_all_but([name])
            model = self._load(name, result.written)
            return [weigh_words(model, photo, text) for text in texts]

    def _segment(self, name: str, photo: Image.Image, texts: Sequence[str]) -> Result:
        written = self._written(name)
        model = self._load(name, written)
        predictions = segment_batch(model, [photo] * len(texts), texts)
        empty = np.zeros((0, 0), np.uint8)
        packed = tuple(Packed(encode_mask(one.mask), one._replace(mask=empty)) for one in predictions)
        return Result(name, written, packed, model.max_tokens, knows_only_drawings(model.tokenizer.words))

    def _drop_all_but(self, names: Sequence[str]) -> None:
        """Free all other networks, before more are loaded."""
        self._held = {key: model for key, model in self._held.items() if key[0] in names}

    def _written(self, name: str) -> int:
        """Return when a file was written, in ns: a training may replace it."""
        try:
            return (self.folder / name).stat().st_mtime_ns
        except OSError as error:  # it was there a moment ago
            raise UserError(f"{name} cannot be read ({error.strerror}): choose another checkpoint") from error

    def _load(self, name: str, written: int) -> Model:
        key = name, written
        if key not in self._held:
            self._held = {other: model for other, model in self._held.items() if other[0] != name}
            self._held[key] = load(self.folder / name, device=self.device)
        return self._held[key]


def is_checkpoint(path: Path) -> bool:
    """Return whether a path looks like weights by its name, or is a folder as for the Hugging Face hub."""
    if path.name.startswith("."):
        return False  # a temporary file, see `write_atomically`
    return (path.is_file() and path.suffix in (".pth", ".safetensors")) or (path / HUB_WEIGHTS).is_file()


def answer(
    checkpoints: Checkpoints,
    path: str | None,
    text: Any,
    names: Sequence[str | None],
    tries: list[Try],
    drawings: Collection[str] = (),
) -> Answer:
    """Return the answer for an uploaded file, sentences (one a line) and the names of one or two checkpoints.

    tries: earlier answers; a new one is put in front of them. drawings: digests of images of the sample data.
    """
    try:
        found, photo = find(checkpoints, path, text, names, drawings)
    except WELL_TRIED as error:
        return Answer((), None, describe_error(error), None, tries)
    shown = show(found, photo, tries)
    score = sum(one.rest.score for one in found.results[0].objects) / len(found.texts)
    title = caption(" · ".join(found.texts), score, " | ".join(one.checkpoint for one in found.results))
    latest = Try(thumbnail(shown.outlined[0], TRY_SIDE), title, found)
    return shown._replace(tries=[latest, *tries][:MAX_TRIES])


def find(
    checkpoints: Checkpoints, path: str | None, text: Any, names: Sequence[str | None], drawings: Collection[str]
) -> tuple[Found, Image.Image]:
    """Return what the networks find, and the photo; the arguments are those of `answer`. Raises WELL_TRIED."""
    texts = split_sentences(text)
    photo = read_upload(path)
    assert path is not None
    chosen = list(dict.fromkeys(checkpoints.choose(name) for name in names))
    results = checkpoints.segment(chosen, photo, texts)
    return Found(path, tuple(texts), results, digest(path) in drawings), photo


def show_again(tries: Sequence[Try], number: object) -> Answer:
    """Return an earlier answer, by its place in the gallery, as it was."""
    try:
        if not isinstance(number, int) or not 0 <= number < len(tries):
            raise UserError("there is no such try any more: describe the object again")
        found = tries[number].found
        return show(found, read_upload(found.path), list(tries))
    except UserError as error:
        return Answer((), None, describe_problem(str(error)), None, list(tries))


def describe_error(error: BaseException) -> str:
    """Return one of WELL_TRIED as HTML."""
    if isinstance(error, torch.OutOfMemoryError):
        return describe_problem("the GPU's memory is full: choose smaller weights, or start the page with --device cpu")
    return describe_problem(str(error))


def show(found: Found, photo: Image.Image, tries: list[Try]) -> Answer:
    """Return what the page shows of this."""
    small = thumbnail(photo, SHOWN_SIDE)
    pictures, strips, parts = [], [], []
    for result in found.results:
        predictions = [one.unpack() for one in result.objects]
        pictures.append(draw_objects(small, predictions))
        maps = [(text, one.alignment) for text, one in zip(found.texts, predictions, strict=True) if one.alignment]
        own = [alignment_strip(small, text, alignment) for text, alignment in maps]
        if len(found.results) > 1:
            own = [captioned(strip, result.checkpoint) for strip in own]
            parts.append(f"<h3>{plain(result.checkpoint)}</h3>")
        strips += own
        parts.append(describe_result(found.texts, predictions, result))
    if not found.is_drawing and any(one.only_drawings for one in found.results):
        parts.append(DRAWINGS_NOTE)
    return Answer(tuple(pictures), below(strips, GAP) if strips else None, "".join(parts), found, tries)


def describe_result(texts: Sequence[str], predictions: Sequence[Prediction], result: Result) -> str:
    """Return the expected IoUs of a network's predictions and the sentences as HTML."""
    if len(texts) > 1:
        return describe_several(texts, predictions)
    return describe_prediction(texts[0], predictions[0], result.max_tokens)


def draw_objects(photo: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """Return a photo with its objects outlined: one in red, several in the colours of the legend."""
    masks = [resize_mask(one.mask, (photo.height, photo.width)) for one in predictions]
    wider = outline_growth(photo.size)
    if len(masks) > 1:
        return overlay_several(photo, masks, wider=wider)
    return overlay(photo, masks[0], PREDICTION_COLOUR, wider=wider)


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """Return a copy whose longer side has at most `side` pixels."""
    if max(picture.size) <= side:
        return picture.copy()
    scale = side / max(picture.size)
    size = (max(1, round(scale * picture.width)), max(1, round(scale * picture.height)))
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)  # first by averaging, as it is much faster


# ---------------------------------------------------------------- files


def write_files(found: Found, folder: Path) -> list[Path]:
    """Write masks, cut-outs, the picture with its legend and the record in COCO's format; return the files.

    Raises UserError if the upload is no longer there, or a file cannot be written.
    """
    photo = read_upload(found.path)
    files = []
    for of, result in zip(file_ends([one.checkpoint for one in found.results]), found.results, strict=True):
        predictions = [one.unpack() for one in result.objects]
        for number, prediction in enumerate(predictions, start=1):
            end = f"-{number}" if len(predictions) > 1 else ""
            pictures = {"mask": Image.fromarray(255 * prediction.mask)}
            if prediction.area:
                pictures["cut-out"] = cut_out(photo, prediction.mask)
            files += [_write_png(picture, folder / f"{kind}{end}{of}.png") for kind, picture in pictures.items()]
        if len(predictions) > 1:
            overview = with_legend(draw_objects(thumbnail(photo, SHOWN_SIDE), predictions), found.texts)
            files.append(_write_png(overview, folder / f"legend{of}.png"))
        files.append(_write_json(coco_of(found, result), folder / f"coco{of}.json"))
    return files


def file_ends(names: Sequence[str]) -> list[str]:
    """Return what the names of each checkpoint's files end with: different for each, and "" for one alone.

    names: of the checkpoints. They come last, because a phone shows the start of a name.
    """
    if len(names) < 2:
        return [""]
    safe = [cut_name(re.sub(r"[^\w.-]", "_", name), NAME_BYTES) for name in names]
    is_clear = len({name.casefold() for name in safe}) == len(safe)  # some file systems ignore case
    return [f"-{name}" if is_clear else f"-{number}-{name}" for number, name in enumerate(safe, start=1)]


# The page can make these files again, so nobody waits for the disk.


def _write_png(picture: Image.Image, path: Path) -> Path:
    write_atomically(path, lambda file: picture.save(file, format="PNG"), durable=False)
    return path


def _write_json(content: object, path: Path) -> Path:
    write_atomically(path, lambda file: file.write(f"{json.dumps(content)}\n".encode()), durable=False)
    return path


def coco_of(found: Found, result: Result) -> dict[str, object]:
    """Return a network's predictions in COCO's format."""
    height, width = result.objects[0].code["size"]
    image = {"id": 1, "file_name": Path(found.path).name, "width": width, "height": height}
    objects = [
        {"id": number, "image_id": 1, "category_id": 1} | describe_object(text, one.rest, one.code)
        for number, (text, one) in enumerate(zip(found.texts, result.objects, strict=True), start=1)
    ]
    return coco_record([image], objects)
