"""Find a file by path, in `pretrained/`, or on the Hugging Face hub where the network allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from utils import UserError

PRETRAINED_DIR = Path("pretrained")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".txt")


def find_file(name: str, filenames: Sequence[str], *, flag: str, advice: str) -> Path:
    """Return a local file for what the user named.

    name: a file; a folder that holds one of `filenames`; a name that is such a folder inside `pretrained/`; or a hub
    name (`bert-base-uncased`, `timm/…`), downloaded into the hub's cache. Raises UserError, naming `flag` and
    ending with `advice` (what to download and where to put it), where none of these leads to a file.
    """
    for place in (Path(name), PRETRAINED_DIR / name):
        if place.is_file():
            return place
        if place.is_dir():
            return _inside(place, filenames, flag, advice)
    if HUB_NAME.fullmatch(name) and not name.endswith(FILE_SUFFIXES):
        return _download(name, filenames, flag, advice)
    raise UserError(f"{flag}: there is no file {name}. {advice}")


def _inside(folder: Path, filenames: Sequence[str], flag: str, advice: str) -> Path:
    for filename in filenames:
        if (folder / filename).is_file():
            return folder / filename
    raise UserError(f"{flag}: the folder {folder} holds none of {', '.join(filenames)}. {advice}")


def _download(name: str, filenames: Sequence[str], flag: str, advice: str) -> Path:
    for filename in filenames:
        try:
            return Path(hf_hub_download(name, filename))
        except EntryNotFoundError:
            continue  # the repository has no such file: try the next name
        except Exception as error:  # any failure of the network, of which its client knows a dozen kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(f"{flag}: {name} could not be had from the hub ({reason[0]}). {advice}") from error
    raise UserError(f"{flag}: {name} on the hub holds none of {', '.join(filenames)}. {advice}")
