"""An object of a data set: how to load its image and its mask."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from errors import UserError
from lib.photo import ImageError, MissingImageError, open_photo, open_stored
from lib.run_lengths import RunLengths
from refer.files import Record
from refer.refer import Index, ref_name
from refer.splits import MANUAL


class ObjectRecord(NamedTuple):
    """What a worker needs to load an object."""

    name: str  # for messages
    file_name: str
    size: tuple[int, int]  # width, height
    parts: list[RunLengths]  # mask, see refer.masks.decode_parts
    as_seen: bool = False  # the image is the user's own photo: apply its EXIF rotation etc., see `lib.photo`

    def identity(self) -> tuple[object, ...]:
        """Return the fields that fingerprints are made of: without `as_seen` for stored images, as in older caches."""
        return tuple(self) if self.as_seen else tuple(self)[:-1]


def describe_object(refer: Index, ref: Record) -> ObjectRecord:
    """Return the record of an object; UserError if it has no mask."""
    image = refer.Imgs[ref["image_id"]]
    size = (image["width"], image["height"])
    return ObjectRecord(ref_name(ref), image["file_name"], size, refer.encode_mask(ref), refer.as_seen)


def open_image_of(described: ObjectRecord, folder: Path) -> Image.Image:
    """Return an object's RGB image; UserError if it is missing, damaged, or differs in size from the mask."""
    path = folder / described.file_name
    image = open_photo(path) if described.as_seen else open_image(path)
    if image.size != described.size:
        raise UserError(
            f"{path} is {image.width}×{image.height} pixels, but the mask of {described.name} is "
            f"{described.size[0]}×{described.size[1]}. Use the images that the masks were drawn on. {MANUAL}"
        )
    return image


def open_image(path: str | Path) -> Image.Image:
    """Return an image as RGB, as it is stored. Raises UserError with the file's name if it cannot be read."""
    try:
        return open_stored(path)
    except ImageError as error:
        raise image_error(path, error) from error


def image_error(path: str | Path, error: Exception) -> UserError:
    """Return the UserError about an image that could not be read."""
    if isinstance(error, FileNotFoundError | MissingImageError):
        return UserError(f"there is no image {path}. {MANUAL} for where to get it")
    return UserError(f"the image {path} cannot be read ({error}). Get the file again. {MANUAL}")
