"""An object of a data set: what is needed to load its image and its mask, and how its image is opened."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from PIL import Image

from errors import UserError
from lib.photo import ImageError, MissingImageError, open_photo, open_stored
from refer.files import Record
from refer.masks import RunLengths
from refer.refer import Index, ref_name
from refer.splits import MANUAL


class ObjectRecord(NamedTuple):
    """What a worker needs to load an object."""

    name: str  # for messages
    file_name: str
    size: tuple[int, int]  # width, height
    parts: list[RunLengths]  # mask, see refer.masks.decode_parts
    as_seen: bool = False  # whether the image is a photo of one's own, read as it is seen, not as it is stored

    def identity(self) -> tuple[object, ...]:
        """Return what fingerprints are made of: states and caches of stored images are older than `as_seen`."""
        return tuple(self) if self.as_seen else tuple(self)[:-1]


def describe_object(refer: Index, ref: Record) -> ObjectRecord:
    """Return what is needed to load an object; UserError names one without a mask."""
    image = refer.Imgs[ref["image_id"]]
    size = (image["width"], image["height"])
    return ObjectRecord(ref_name(ref), image["file_name"], size, refer.encode_mask(ref), refer.as_seen)


def open_image_of(described: ObjectRecord, folder: Path) -> Image.Image:
    """Return an object's RGB image; UserError names one that is missing, damaged or of another size than the mask."""
    path = folder / described.file_name
    image = open_photo(path) if described.as_seen else open_image(path)
    if image.size != described.size:
        raise UserError(
            f"{path} is {image.width}×{image.height} pixels, but the mask of {described.name} is "
            f"{described.size[0]}×{described.size[1]}. Use the images the masks were drawn on. {MANUAL}"
        )
    return image


def open_image(path: str | Path) -> Image.Image:
    """Return an image as RGB, as it is stored. Raises UserError, naming the file, where it cannot be read."""
    try:
        return open_stored(path)
    except ImageError as error:
        raise image_error(path, error) from error


def image_error(path: str | Path, error: Exception) -> UserError:
    """Return what to tell the user about an image that could not be read."""
    if isinstance(error, FileNotFoundError | MissingImageError):
        return UserError(f"there is no image {path}. {MANUAL} for where to get it")
    return UserError(f"the image {path} cannot be read ({error}). Get the file again. {MANUAL}")
