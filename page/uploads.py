"""Checks of what a visitor sends: image files and sentences. Nothing of a request is trusted."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from errors import UserError
from lib.photo import ImageError, MissingImageError, TooLargeError, open_photo, opened

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MEGA = 1_000_000
MAX_FILE_SIZE = 20 * MEGA  # bytes
MAX_PIXELS = 50 * MEGA
MAX_SENTENCE = 1000  # characters of all sentences together
MAX_SENTENCES = 8
HINT = "the red heart on the left"

Upload: TypeAlias = object  # Gradio's record of a file, a dict with "path", or None; a request may contain anything


def uploaded(upload: Upload, folder: Path) -> str | None:
    """Return the path of an upload, None if there is none; folder: Gradio's folder of uploads.

    Raises UserError for any path outside of it, without revealing whether that path exists.
    """
    if upload is None:
        return None
    path: Any = upload.get("path") if isinstance(upload, dict) else None
    try:
        real = Path(os.path.realpath(path))
        is_inside = real.is_relative_to(os.path.realpath(folder)) and stat.S_ISREG(real.stat().st_mode)
    except (TypeError, ValueError, OSError):  # not a path, or it does not exist
        is_inside = False
    if not is_inside:
        raise UserError("the image is not, or no longer, among the uploads: choose it again")
    return str(real)


def split_sentences(text: Any) -> list[str]:
    """Return the sentences of a text, one a line. Raises UserError as `check_sentence`, and if they are too many."""
    check_sentence(text)
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if len(sentences) > MAX_SENTENCES:
        raise UserError(f"there are {len(sentences)} sentences; at most {MAX_SENTENCES} are shown: leave some out")
    return sentences


def check_sentence(text: Any) -> None:
    """Raise UserError if this is not a text, or an empty one, or one of more than MAX_SENTENCE characters."""
    if not isinstance(text, str):
        raise UserError("the sentence is not a text: describe an object in words")
    if not text.strip():
        raise UserError(f"the sentence is empty: describe an object, such as “{HINT}”")
    if len(text) > MAX_SENTENCE:
        raise UserError(f"the sentence has {len(text)} characters; at most {MAX_SENTENCE} are allowed: shorten it")


def read_upload(path: str | None) -> Image.Image:
    """Return an uploaded photo, upright and RGB. Raises UserError as `check_upload` does, and if it is damaged."""
    path = check_upload(path)
    try:
        return open_photo(path)
    except UserError as error:
        raise UserError(str(error).replace(path, Path(path).name)) from error  # do not show the server's folders


def check_upload(path: str | None) -> str:
    """Return the path; UserError if there is no file, or if it is not an image or too large. Decodes no pixels."""
    if not path:
        raise UserError("there is no image: choose one, or take an example")
    name = Path(path).name
    too_large = f"has more than the allowed {MAX_PIXELS // MEGA} megapixels: make it smaller"
    try:
        size = os.stat(path).st_size
        with opened(path, FORMATS, MAX_PIXELS):
            pass
    except (FileNotFoundError, MissingImageError):
        raise UserError(f"{name} is no longer here: choose it again") from None
    except TooLargeError:
        raise UserError(f"{name} {too_large}") from None
    except (ImageError, OSError):
        raise UserError(f"{name} is not a supported image: expected {', '.join(FORMATS)}") from None
    if size > MAX_FILE_SIZE:
        raise UserError(
            f"{name} has {size / MEGA:.1f} MB; at most {MAX_FILE_SIZE // MEGA} MB are allowed: make it smaller"
        )
    return path


def digest(path: str | Path) -> str:
    """Return what tells the content of a file from any other."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
