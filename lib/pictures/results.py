"""What `predict.py` and `predict_onnx.py` write: pictures, and lines of JSON or a data set in COCO's format.

Without PyTorch, as `predict_onnx.py` uses it. pycocotools is needed for `--json` alone, matplotlib for alignment maps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from PIL import Image

from errors import UserError, plain
from lib.asked import ALWAYS, FOLDERS
from lib.files import is_special, longest_name, open_to_append, write_atomically, write_text
from lib.inputs import Planes
from lib.outputs import complete
from lib.photo import Pixels, open_photo
from lib.pictures.overlay import PREDICTION_COLOUR, cut_out, outline_growth, overlay
from lib.pictures.panels import alignment_strip
from lib.requests import Request, make_folders, picture_name, skipped_lines
from lib.texts import parse_json_lines

if TYPE_CHECKING:  # it imports pycocotools
    from lib.run_lengths import RunLengths

GOES_ON = "What is written stays: once this is mended, the same command with --skip-existing continues."
IDENTITY = ("mask", "file_name", "text")  # what tells the request of a line


class Predicted(Protocol):
    """The predicted object of a sentence in a photo, of whatever network."""

    @property
    def mask(self) -> Pixels:
        """(H, W) uint8, 1 on the object, at the size of the upright photo."""

    @property
    def score(self) -> float:
        """The IoU that the network expects, 0 to 1."""

    @property
    def alignment(self) -> Sequence[Planes]:
        """Cosine of pixels and sentence at each stage, (H_i, W_i) float32."""

    @property
    def no_target(self) -> bool | None:
        """Whether the sentence has no target; None for a network without a no-target head."""


def box_of(code: RunLengths) -> tuple[int, int, int, int]:
    """Return left, top, width and height of an encoded mask in pixels; all 0 if it is empty."""
    from pycocotools import mask as coco_mask

    left, top, width, height = (int(number) for number in coco_mask.toBbox(code))
    return left, top, width, height


def describe_object(text: str, prediction: Predicted, code: RunLengths | None = None) -> dict[str, object]:
    """Return what a predicted object has in COCO's format, and its score and sentence; without ids.

    code: of the mask, if it is known; the mask of the prediction is then not looked at.
    """
    from pycocotools import mask as coco_mask

    from lib.run_lengths import encode_mask

    if code is None:
        code = encode_mask(prediction.mask)
    found: dict[str, object] = {
        "segmentation": code,
        "bbox": list(box_of(code)),
        "area": int(coco_mask.area(code)),
        "iscrowd": 0,
        "score": round(prediction.score, 4),
        "text": text,
    }
    if prediction.no_target is not None:
        found["no_target"] = prediction.no_target
    return found


def coco_record(
    images: Sequence[Mapping[str, object]], annotations: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    """Return images, annotations and their one category in COCO's format."""
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


class LineFile:
    """The results of a command as JSON lines, each written at once, so that a killed run keeps what it has."""

    def __init__(self, path: Path) -> None:
        """Writes nothing before `start`."""
        self.path = path
        self.kept: list[dict[str, object]] = []
        self._file: BinaryIO | None = None

    def read(self) -> list[dict[str, object]]:
        """Return the records of an earlier run, without the incomplete line that a killed one leaves.

        Raises UserError if the file has something else.
        """
        if not self.path.is_file() or is_special(self.path):
            return []
        content = self.path.read_bytes()
        records = [record for _, record in parse_json_lines(content[: content.rfind(b"\n") + 1], self.path)]
        if not all(isinstance(one, dict) and all(isinstance(one.get(key), str) for key in IDENTITY) for one in records):
            raise UserError(f"--json {self.path} has lines that are not of this command: name another file")
        return records

    def start(self) -> None:
        """Replace the file by the lines that are `kept`. Raises UserError if it cannot be written."""
        try:
            if not is_special(self.path):
                write_text(self.path, "".join(map(_json_line, self.kept)))
            self._file = open_to_append(self.path)
        except OSError as error:
            raise UserError(f"--json {self.path} cannot be written ({error.strerror or error})") from error

    def write(self, record: dict[str, object]) -> None:
        """Append a line. Raises UserError if the disk is full."""
        assert self._file is not None, "not started"
        try:
            self._file.write(_json_line(record).encode())
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self.path} could not be written ({error})") from error


def _json_line(record: dict[str, object]) -> str:
    return json.dumps(record) + "\n"


def missing(requests: Sequence[Request], writer: Writer, lines: LineFile | None) -> list[Request]:
    """Return the requests that lack a mask, another wanted picture, or a line, and print how many do not.

    lines: keeps the lines of the others. A request is known by its number, photo and sentence.
    """
    records = [] if lines is None else lines.read()
    known = {tuple(record[key] for key in IDENTITY) for record in records}

    identities = {request: (writer.name_of(request), str(request.image), request.text) for request in requests}
    pictures = ["masks", *(["cutouts"] if "cutouts" in writer.more else [])]

    def is_there(request: Request) -> bool:
        has_line = lines is None or identities[request] in known
        return has_line and all(writer.has(folder, request) for folder in pictures)

    left = [request for request in requests if not is_there(request)]
    if lines is not None:
        done = set(identities.values()) - {identities[request] for request in left}
        lines.kept = [record for record in records if tuple(record[key] for key in IDENTITY) in done]
    print(plain(f"{len(requests) - len(left)} of {len(requests)} masks are already in {writer.folder}"))
    return left


class Writer:
    """Writes the pictures of predictions into a folder, and a line for each, or collects COCO's format."""

    def __init__(
        self,
        folder: Path,
        requests: Sequence[Request] = (),
        more: Collection[str] = (),
        *,
        with_records: bool = False,
    ) -> None:
        """more: the folders of ON_REQUEST that are wanted. with_records: whether lines or COCO's format are wanted.

        Raises UserError if the folder cannot be written to, or if pictures would be mixed with requested photos.
        """
        self.folder, self.more, self.with_records = folder, more, with_records
        self.lines: LineFile | None = None  # receives the results instead of `annotations`
        self.images: dict[Path, dict[str, object]] = {}
        self.annotations: list[dict[str, object]] = []
        self.n_masks = self.n_empty = 0
        self.failures: dict[Path, UserError] = {}  # of the photos that were skipped
        make_folders(folder, (*ALWAYS, *more), requests, FOLDERS)

    def name_of(self, request: Request) -> str:
        """Return the file name of a request's pictures: number, photo and sentence."""
        return picture_name(request, longest_name(self.folder / FOLDERS[0]))

    def write(self, request: Request, photo: Image.Image, prediction: Predicted) -> None:
        """Write overlay, alignment maps and mask; the mask last, because it says that the request is done.

        Raises UserError if a file cannot be written.
        """
        pictures = {"overlays": overlay(photo, prediction.mask, PREDICTION_COLOUR, wider=outline_growth(photo.size))}
        if prediction.alignment and find_spec("matplotlib"):
            pictures["alignment"] = alignment_strip(photo, request.text, prediction.alignment)
        if "cutouts" in self.more:
            pictures["cutouts"] = cut_out(photo, prediction.mask)
        pictures["masks"] = Image.fromarray(prediction.mask * 255)
        for folder, picture in pictures.items():
            self.save(picture, folder, request)
        if self.with_records:
            self._collect(request, photo, prediction)
        self.n_masks += 1
        self.n_empty += not prediction.mask.any()

    def save(self, picture: Image.Image, folder: str, request: Request) -> None:
        """Write a picture into one of FOLDERS. Raises UserError if it cannot be written."""
        write_atomically(self.folder / folder / self.name_of(request), partial(picture.save, format="PNG"))

    def has(self, folder: str, request: Request) -> bool:
        """Return whether one of FOLDERS has the picture of a request, from this run or an earlier one."""
        return (self.folder / folder / self.name_of(request)).is_file()

    def mask_of(self, request: Request) -> Pixels:
        """Return a mask that was written, (H, W) uint8, 1 on the object. Raises UserError if it cannot be read."""
        return np.asarray(open_photo(self.folder / "masks" / self.name_of(request)).convert("L")) // 255

    def _collect(self, request: Request, photo: Image.Image, prediction: Predicted) -> None:
        """Write a line, or collect an annotation in COCO's format."""
        image = {"file_name": str(request.image), "width": photo.width, "height": photo.height}
        found = describe_object(request.text, prediction)
        if self.lines is not None:
            self.lines.write({"mask": self.name_of(request)} | image | found)
            return
        entry = self.images.setdefault(request.image, {"id": len(self.images) + 1} | image)
        number = len(self.annotations) + 1
        self.annotations.append({"id": number, "image_id": entry["id"], "category_id": 1} | found)

    def write_json(self, path: Path) -> None:
        """Write images, annotations and one category in COCO's format."""
        content = coco_record(list(self.images.values()), self.annotations)
        write_text(path, json.dumps(content, indent=1) + "\n")


def work_through(
    batches: Iterable[Sequence[tuple[Request, Image.Image]]],
    work: Callable[[Sequence[tuple[Request, Image.Image]]], None],
    writer: Writer,
) -> list[str]:
    """Let `work` write every batch; return the lines of a message about what went wrong, first what ended the work.

    A file that cannot be written ends it, because the next could not either; photos that cannot be read are skipped.
    """
    ended: list[str] = []
    try:
        for batch in batches:
            work(batch)
    except UserError as error:
        ended = [str(error), GOES_ON]
    return [*ended, *skipped_lines(writer.failures)]


def write_results(writer: Writer, lines: LineFile | None, path: Path | None, *steps: Callable[[], None]) -> None:
    """Take the steps that write pictures, with a line for each or, after the first step, COCO's format in `path`.

    What failed in one step is raised after the others.
    """
    if lines is not None:
        lines.start()
        writer.lines = lines
    elif path is not None:  # even if a picture could not be written
        steps = (steps[0], lambda: writer.write_json(path), *steps[1:])
    complete(*steps)
