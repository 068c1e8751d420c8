"""Find a file by path, in `pretrained/`, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from errors import UserError, first_line

PRETRAINED_DIR = Path("pretrained")
RELEASED_FILES = ("best_refcoco.pth", "best_refcoco+.pth", "best_refcocog.pth")
RELEASED_URL = "https://drive.google.com/drive/folders/1zEAuhntMjH13rhzSYibw_xXLvp-4xB_v"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
FILE_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".txt", ".onnx")
PROXIES = ("HTTPS_PROXY", "ALL_PROXY")
# Errors of the hub's client besides its own (HTTPError is the base class of all HTTP errors, in every version):
# RuntimeError comes from hf_xet, its downloader; ImportError and ValueError from proxies that it does not support.
OTHER_ERRORS = (OSError, RuntimeError, ImportError, ValueError)
PROBE_SECONDS = 3  # timeout for each address of the hub


def is_hub_name(name: str) -> bool:
    """Return whether `name` could be a repository on the hub (`bert-base-uncased`, `timm/…`) rather than a file."""
    return HUB_NAME.fullmatch(name) is not None and not name.endswith(FILE_SUFFIXES)


def find_file(name: str, filenames: Sequence[str], *, flag: str, advice: str, offline: bool = False) -> Path:
    """Return a local file for a name that the user gave.

    name: a file; a folder with one of `filenames`; either of these inside `pretrained/`; or a hub name, which is looked
    up in the hub's cache and else downloaded into it, unless `offline`. If there is no such file, raises UserError with
    `flag` and `advice` (what to download and where to put it).
    """
    for candidate in (Path(name), PRETRAINED_DIR / name):
        for path in (candidate, *(candidate / filename for filename in filenames)):
            if path.is_file():
                return path
    if Path(name).is_dir():
        raise UserError(f"{flag}: the folder {name} has none of {', '.join(filenames)}. {advice}")
    if not is_hub_name(name):
        raise UserError(f"{flag}: there is no file {name}. {advice}")
    # Imported here, because it takes most of a second and is rarely needed.
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    if offline:
        return _cached(name, filenames, flag, advice)
    try:
        file = _from_hub(name, filenames)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{flag}: there is no file or folder {name}, and no public repository of this name on the hub. {advice}"
        ) from error
    except (HTTPError, HFValidationError, *OTHER_ERRORS) as error:
        raise UserError(
            f"{flag}: {name} could not be downloaded from the hub ({first_line(error)}{_proxies()}). {advice}"
        ) from error
    if file is None:
        raise UserError(f"{flag}: {name} on the hub has none of {', '.join(filenames)}. {advice}")
    return file


def _proxies() -> str:
    """Return the part of a message about proxies: the variables that are set, not their values (may be passwords)."""
    named = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    return f"; asked through the proxy in {' or '.join(named)}" if named else ""


def _cached(name: str, filenames: Sequence[str], flag: str, advice: str) -> Path:
    """Return the first of `filenames` in the hub's cache; UserError as of `find_file` if it has none."""
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):
        if file := _from_cache(name, filenames):
            return file
    raise UserError(f"{flag}: {name} is not on this machine; it is downloaded if the hub can be reached. {advice}")


def _from_cache(name: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of `filenames` in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for filename in filenames:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(name, filename, local_files_only=True))
    return None


def _from_hub(name: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of `filenames` in the hub's cache, or else on the hub; raises the errors of its client."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    if cached := _from_cache(name, filenames):
        return cached
    # Without internet access `hf_hub_download` retries for 23 seconds, but a plain request fails at once.
    with suppress(HfHubHTTPError):
        get_hf_file_metadata(hf_hub_url(name, filenames[0]), timeout=PROBE_SECONDS)
    for filename in filenames:
        with suppress(RemoteEntryNotFoundError):
            return Path(hf_hub_download(name, filename))
    return None


def download_data(repository: str, suffix: str, folder: Path, advice: str) -> list[Path]:
    """Return the files of a data set on the hub whose names end in `suffix`, downloaded into a folder.

    An interrupted download resumes. Raises UserError, ending with `advice`, if they cannot be had.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        with suppress(HfHubHTTPError):  # any answer will do; without a network this fails at once, as in `_from_hub`
            address = hf_hub_url(repository, "README.md", repo_type="dataset")
            get_hf_file_metadata(address, timeout=PROBE_SECONDS)
        listed = HfApi().list_repo_files(repository, repo_type="dataset")
        names = [name for name in listed if name.endswith(suffix) and _stays_inside(name)]
        if not names:
            raise UserError(f"{repository} on the hub has no file that ends in {suffix}. {advice}")
        return [Path(hf_hub_download(repository, name, repo_type="dataset", local_dir=folder)) for name in names]
    except (HTTPError, HFValidationError, *OTHER_ERRORS) as error:
        raise UserError(
            f"{repository} could not be downloaded from the hub ({first_line(error)}{_proxies()}).\n{advice}"
        ) from error


def _stays_inside(name: str) -> bool:
    """Return whether a file of this name is written below the folder that it is downloaded into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
