"""Find a file by path, in `pretrained/`, or on the Hugging Face hub where the network allows."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from errors import UserError

PRETRAINED_DIR = Path("pretrained")
RELEASED_FILES = ("best_refcoco.pth", "best_refcoco+.pth", "best_refcocog.pth")
RELEASED_URL = "https://drive.google.com/drive/folders/1zEAuhntMjH13rhzSYibw_xXLvp-4xB_v"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
FILE_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".txt")
PROXIES = ("HTTPS_PROXY", "ALL_PROXY")
PROBE_SECONDS = 3  # without an answer, for each address of the hub


def is_hub_name(name: str) -> bool:
    """Return whether `name` could be a repository on the hub (`bert-base-uncased`, `timm/…`) rather than a file."""
    return HUB_NAME.fullmatch(name) is not None and not name.endswith(FILE_SUFFIXES)


def find_file(name: str, filenames: Sequence[str], *, flag: str, advice: str) -> Path:
    """Return a local file for what the user named.

    name: a file; a folder that holds one of `filenames`; either of these inside `pretrained/`; or a hub name, taken
    from the hub's cache or downloaded into it. Raises UserError, naming `flag` and ending with `advice` (what to
    download and where to put it), where none of these leads to a file.
    """
    for place in (Path(name), PRETRAINED_DIR / name):
        for path in (place, *(place / filename for filename in filenames)):
            if path.is_file():
                return path
    if Path(name).is_dir():
        raise UserError(f"{flag}: the folder {name} holds none of {', '.join(filenames)}. {advice}")
    if not is_hub_name(name):
        raise UserError(f"{flag}: there is no file {name}. {advice}")
    # Here, because the hub's client takes most of a second to import, and few names lead to it.
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        found = _from_hub(name, filenames)
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{flag}: there is no file or folder {name}, and the hub has none of that name or wants a login. {advice}"
        ) from error
    # HTTPError is the base class of the errors of the hub's HTTP client, whichever its version uses; RuntimeError comes
    # from hf_xet, its downloader; ImportError and ValueError from proxies of kinds that the client does not know.
    except (HTTPError, OSError, RuntimeError, HFValidationError, ImportError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{flag}: {name} could not be had from the hub ({reason}{_proxies()}). {advice}") from error
    if found is None:
        raise UserError(f"{flag}: {name} on the hub holds none of {', '.join(filenames)}. {advice}")
    return found


def _proxies() -> str:
    """Return what a message says of proxies: which variables name one, not what is in them, which may be a password."""
    named = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
    return f"; asked through the proxy in {' or '.join(named)}" if named else ""


def _from_hub(name: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of `filenames` that the hub's cache, or else the hub holds; raises the hub's own errors."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    for filename in filenames:
        with suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(name, filename, local_files_only=True))
    # Without a network `hf_hub_download` retries for 23 seconds; a plain request fails at once. Any answer will do.
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
    except (HTTPError, OSError, RuntimeError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{repository} could not be had from the hub ({reason}).\n{advice}") from error


def _stays_inside(name: str) -> bool:
    """Return whether a file of this name is written below the folder that it is downloaded into."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
