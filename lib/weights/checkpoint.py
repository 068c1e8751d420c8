"""Reading and writing files of weights and training states.

No file is trusted: pickles are read with `weights_only=True`, which runs no code in them. `python -m lib.weights` shows
the content of a file and converts between layouts.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import UserError, few, first_line
from lib.contents import BESIDE_WEIGHTS
from lib.files import write_atomically
from lib.hub import RELEASED_FILES, RELEASED_URL
from lib.schema import Misfit, check
from lib.texts import LFS_POINTER, read_lines
from lib.variants import IMG_SIZE, MAX_TOKENS
from lib.weights.layouts import read_about, restore
from lib.weights.tensors import all_finite, plain_tensor

HUB_WEIGHTS, HUB_VOCABULARY = "model.safetensors", "vocab.txt"
# Options of the training that a test uses as well, with their values for bare weights.
REMEMBERED = {"img_size": IMG_SIZE, "bert_tokenizer": "bert-base-uncased", "max_tokens": MAX_TOKENS}
ARCHIVE = b"PK\x03\x04"  # the first bytes of files that PyTorch writes since 1.6
GRAPH = b"\x08"  # the first byte of ONNX files, the field of their version
OPTIONAL = frozenset({"temp"})  # absent from released files, because it was not trained


class DamagedFileError(UserError):
    """A file whose content is not as it was written."""


@dataclass
class Checkpoint:
    """The content of a file of weights or of a training state."""

    path: Path
    weights: dict[str, Tensor]  # by name, without `module.`
    args: dict[str, Any] = field(default_factory=dict)  # options of the training; empty for bare weights
    state: dict[str, Any] = field(default_factory=dict)  # everything else, for resuming
    vocabulary: list[str] | None = None  # words of the tokenizer, if the file has them

    def remembered(self, name: str) -> Any:
        """Return one of the options in REMEMBERED.

        Raises UserError if a training has no image size: the scores depend on it, so there is no safe default.
        """
        value = self.args.get(name)
        if value is None and name == "img_size" and self.args:
            raise UserError(f"{self.path}: its entry args.img_size is missing: pass the training's with --img_size")
        return REMEMBERED[name] if value is None else value


def read_file(path: str | Path, *, mapped: bool = False) -> Any:
    """Return the content of a safetensors or PyTorch file, on the CPU; the format is detected from its content.

    mapped: tensors are read from the file when they are used, if its format allows it, so the file must stay as it is.
    A pickle may contain only tensors, plain containers and `argparse.Namespace`. Raises UserError if the file is
    missing, damaged or contains anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weight file {path}{_where(path)}")
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise UserError(
                    f"{path} was refused: it is a Git LFS pointer, not the file itself. Fetch the file with `git lfs "
                    "pull`, or download it"
                )
            is_safetensors = start[8:9] == b"{"  # the length in eight bytes, then JSON
            if is_safetensors:
                return load_file(path)
            if start.startswith(GRAPH):
                raise UserError(
                    f"{path} was refused: it is an ONNX graph, which predict_onnx.py runs. Name the weights that it "
                    "was exported from"
                )
            file.seek(0)
            mapped = mapped and start.startswith(ARCHIVE)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"it wants to use {name[1]}" if name else "it is damaged or was not saved by PyTorch"
        raise UserError(
            f"{path} was refused: {problem}. Only tensors, plain values and argparse.Namespace are allowed; no code in "
            "it was run. Download it again, or ask its author for a file of weights only."
        ) from error
    except Exception as error:  # damaged bytes may raise anything
        message = first_line(error).split(". ")[0]
        reason = message if " " in message else "it is neither a pickle nor an archive"
        raise UserError(
            f"{path} could not be read as weights ({reason}): it is damaged or has an unsupported format. Download or "
            "copy it again."
        ) from error


def _where(path: Path) -> str:
    """Return where to download a missing file, as the rest of a message."""
    return f". The released one can be downloaded from {RELEASED_URL}" if path.name in RELEASED_FILES else ""


def check_bytes(path: str | Path) -> None:
    """Compare every record of a file that PyTorch saved with its checksum, which PyTorch does not check.

    Raises DamagedFileError if one differs, as after a single flipped bit, or if the end of the file is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged_record = archive.testzip()
    except FileNotFoundError:
        raise UserError(f"there is no weight file {path}") from None
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes may raise anything
        raise DamagedFileError(f"{path} is damaged or was not written by train.py ({error})") from error
    if damaged_record:
        raise DamagedFileError(f"{path} is damaged: its record {damaged_record} does not match its checksum")


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> Checkpoint:
    """Read weights in any layout; mapped: see `read_file`.

    path: a file of bare weights, a training state (with `model`, `epoch`, `args`, …) of this or another project, a
    safetensors file, or a folder with `model.safetensors`, as written by `SegModel.save_pretrained`. Raises UserError
    if there are no weights in it.
    """
    path = Path(path)
    if path.is_dir():
        checkpoint = read_checkpoint(path / HUB_WEIGHTS, mapped=mapped)
        words = path / HUB_VOCABULARY
        if words.is_file():
            checkpoint.vocabulary = read_lines(words)
        return checkpoint
    content = read_file(path, mapped=mapped)
    is_training_file = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)
    weights = content["model"] if is_training_file else content
    _check_state_dict(weights, path)
    if about := read_about(path):
        return Checkpoint(path, restore(weights), about["args"], about["state"], about["vocabulary"])
    state = {name: value for name, value in content.items() if name != "model"} if is_training_file else {}
    if isinstance(state.get("args"), argparse.Namespace):
        state["args"] = vars(state["args"])
    check(state, BESIDE_WEIGHTS, path, "Save only its weights, and test those")
    args, words = state.pop("args", None), state.pop("vocabulary", None)
    return Checkpoint(path, strip_wrappers(weights), dict(args or {}), state, words)


def holds_state(path: Path) -> bool:
    """Return whether a file is a training state, by the names in it, without unpickling it."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(b"lr_scheduler" in archive.read(name) for name in pickles)
    except Exception:  # the file does not exist, or has another layout, which may raise anything
        return False


def _check_state_dict(weights: object, path: Path) -> None:
    """Raise UserError for anything but a dictionary of plain tensors."""
    if not (isinstance(weights, Mapping) and weights and all(isinstance(name, str) for name in weights)):
        raise UserError(f"{path} holds no state dict, neither bare nor under 'model'")
    try:
        for name, value in weights.items():
            plain_tensor(value, name)
    except Misfit as error:
        raise UserError(f"{path} holds no state dict, neither bare nor under 'model': {error}") from error


def strip_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DistributedDataParallel and torch.compile from names, unless two names would collide."""
    stripped = {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in weights.items()}
    return stripped if len(stripped) == len(weights) else dict(weights)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: object,
    expected: Iterable[str] | None = None,
    *,
    exact: bool = False,
) -> None:
    """Copy `weights` into the model, strictly.

    expected: the names that `source` must provide; default: all names of the model. exact: also refuse other
    floating-point dtypes. Raises UserError with missing and unexpected names, wrong shapes and dtypes, and weights that
    are not finite; the model is unchanged then.
    """
    ours = model.state_dict()
    required = set(ours) - OPTIONAL if expected is None else set(expected)
    allowed = set(ours) if expected is None else required
    missing = sorted(required - set(weights))
    unexpected = sorted(set(weights) - allowed)
    shared = [(name, value, ours[name]) for name, value in weights.items() if name in ours]
    shapes = [
        f"{name} is {list(value.shape)}, expected {list(target.shape)}"
        for name, value, target in shared
        if value.shape != target.shape
    ]
    dtypes = [
        f"{name} is {value.dtype}, expected {target.dtype}"
        for name, value, target in shared
        if value.dtype != target.dtype and (exact or not value.is_floating_point() or not target.is_floating_point())
    ]
    infinite = [name for name, value, _ in shared if not all_finite([value])]
    problems = (
        _listing("missing", missing)
        + _listing("unexpected", unexpected)
        + _listing("of another shape", shapes)
        + _listing("of another type", dtypes)
        + _listing("infinite or not a number", infinite)
    )
    if problems:
        raise UserError(
            f"{source} does not fit this network:\n{problems}Check that these weights belong to this type of network."
        )
    model.load_state_dict(dict(weights), strict=False)


def _listing(title: str, names: list[str]) -> str:
    return f"  {title} ({len(names)}): {few(names)}\n" if names else ""


def save_checkpoint(
    path: str | Path, content: Mapping[str, Any], before_replacing: Callable[[], object] | None = None
) -> None:
    """Write a training state for `read_checkpoint`; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(dict(content), file), before_replacing)
