"""Weights and training states in files: reading what others made, saving and loading our own.

Nothing in a file is trusted: pickles are read with `weights_only=True`, which runs no code of theirs.
`python -m lib.weights` shows what is in a file and turns one layout into another.
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

from errors import UserError, few
from lib.contents import BESIDE_WEIGHTS
from lib.files import write_atomically
from lib.hub import RELEASED_FILES, RELEASED_URL
from lib.schema import Misfit, check
from lib.texts import LFS_POINTER, read_lines
from lib.variants import IMG_SIZE
from lib.weights.layouts import read_about, restore
from lib.weights.tensors import plain_tensor

HUB_WEIGHTS, HUB_VOCABULARY = "model.safetensors", "vocab.txt"
# What a file remembers of its training and a test repeats, with what holds for bare weights.
REMEMBERED = {"img_size": IMG_SIZE, "bert_tokenizer": "bert-base-uncased"}
OPTIONAL = frozenset({"temp"})  # absent from released files, whose recipe leaves it at its initial value


class DamagedFileError(UserError):
    """A file whose bytes are not those that were once written."""


@dataclass
class Checkpoint:
    """What a weight or training file holds."""

    path: Path
    weights: dict[str, Tensor]  # by their names, without `module.`
    args: dict[str, Any] = field(default_factory=dict)  # the training's options; empty for bare weights
    state: dict[str, Any] = field(default_factory=dict)  # everything else, for resuming
    vocabulary: list[str] | None = None  # the words of its tokenizer, where they travel with the weights

    def remembered(self, name: str) -> Any:
        """Return one of the options in REMEMBERED.

        Raises UserError for a training's options without an image size: at another one, other numbers would come out.
        """
        value = self.args.get(name)
        if value is None and name == "img_size" and self.args:
            raise UserError(f"{self.path}: its entry args.img_size is missing: pass the training's with --img_size")
        return REMEMBERED[name] if value is None else value


def read_file(path: str | Path) -> Any:
    """Return the content of a safetensors or PyTorch file, on the CPU; the file's content tells which it is.

    Of pickled classes only tensors, plain containers and `argparse.Namespace` are admitted. Raises UserError where
    the file is missing, damaged or wants anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weight file {path}{_where(path)}")
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            start = file.read(len(LFS_POINTER))
            if start == LFS_POINTER:
                raise UserError(
                    f"{path} was refused: it is a Git LFS pointer, which stands for the file itself. Fetch that with "
                    "`git lfs pull`, or download it"
                )
            is_safetensors = start[8:9] == b"{"  # eight bytes of length, then JSON
            file.seek(0)
            return load_file(path) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        problem = f"it wants to use {wanted[1]}" if wanted else "it is damaged or was not saved by PyTorch"
        raise UserError(
            f"{path} was refused: {problem}. Only tensors, plain values and argparse.Namespace are read, and nothing "
            "in it was run. Fetch it again, or ask its author for a file of weights only."
        ) from error
    except Exception as error:  # damaged bytes make the readers stumble over almost anything
        words = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        reason = words if " " in words else "its bytes are no pickle and no archive"
        raise UserError(
            f"{path} could not be read as weights ({reason}): it is damaged or of a format that is not read here. "
            "Fetch or copy it again."
        ) from error


def _where(path: Path) -> str:
    """Return where a missing file can be had, as the rest of a message."""
    return f". The released one can be downloaded from {RELEASED_URL}" if path.name in RELEASED_FILES else ""


def check_bytes(path: str | Path) -> None:
    """Compare every record of a file that PyTorch saved with its checksum, which PyTorch itself does not look at.

    Raises DamagedFileError where one differs, as after a single flipped bit, or where the file's end is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except FileNotFoundError:
        raise UserError(f"there is no weight file {path}") from None
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the reader stumble over almost anything
        raise DamagedFileError(f"{path} is damaged or was not written by train.py ({error})") from error
    if broken:
        raise DamagedFileError(f"{path} is damaged: its record {broken} does not match its checksum")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read weights in any layout: bare, in a training file (`model`, `epoch`, `args`, …), ours or anybody's; a
    safetensors file; a folder that holds `model.safetensors`, as `SegModel.save_pretrained` writes it.

    Raises UserError where there are no weights in it.
    """
    path = Path(path)
    if path.is_dir():
        checkpoint = read_checkpoint(path / HUB_WEIGHTS)
        words = path / HUB_VOCABULARY
        if words.is_file():
            checkpoint.vocabulary = read_lines(words)
        return checkpoint
    content = read_file(path)
    is_training_file = isinstance(content, Mapping) and isinstance(content.get("model"), Mapping)
    weights = content["model"] if is_training_file else content
    _check_state_dict(weights, path)
    if about := read_about(path):
        return Checkpoint(path, restore(weights), about["args"], about["state"], about["vocabulary"])
    state = {name: value for name, value in content.items() if name != "model"} if is_training_file else {}
    if isinstance(state.get("args"), argparse.Namespace):
        state["args"] = vars(state["args"])
    check(state, BESIDE_WEIGHTS, path, "Save its weights alone, and test those")
    args, words = state.pop("args", None), state.pop("vocabulary", None)
    return Checkpoint(path, strip_wrappers(weights), dict(args or {}), state, words)


def holds_state(path: Path) -> bool:
    """Tell whether a file holds a training's state, by the names in it; nothing of it is built."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(b"lr_scheduler" in archive.read(name) for name in pickles)
    except Exception:  # there is no such file, or it is of another layout, which fails in any way
        return False


def _check_state_dict(weights: object, path: Path) -> None:
    """Raise UserError for what is no dictionary of tensors, and for tensors that cannot be computed with."""
    if not (isinstance(weights, Mapping) and weights and all(isinstance(name, str) for name in weights)):
        raise UserError(f"{path} holds no state dict, neither bare nor under 'model'")
    try:
        for name, value in weights.items():
            plain_tensor(value, name)
    except Misfit as error:
        raise UserError(f"{path} holds no state dict, neither bare nor under 'model': {error}") from error


def strip_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what DistributedDataParallel and torch.compile add to names; nothing if two names would become one."""
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

    expected: the names that `source` must provide; all of the model's where not given. exact: numbers of another
    precision, too, are wrong. Raises UserError that lists missing and unexpected names, wrong shapes and dtypes, and
    weights that are not finite; changes nothing then.
    """
    own = model.state_dict()
    required = set(own) - OPTIONAL if expected is None else set(expected)
    allowed = set(own) if expected is None else required
    missing = sorted(required - set(weights))
    unexpected = sorted(set(weights) - allowed)
    shared = [(name, value, own[name]) for name, value in weights.items() if name in own]
    shapes = [
        f"{name} is {list(value.shape)}, expected {list(ours.shape)}"
        for name, value, ours in shared
        if value.shape != ours.shape
    ]
    dtypes = [
        f"{name} is {value.dtype}, expected {ours.dtype}"
        for name, value, ours in shared
        if value.dtype != ours.dtype and (exact or not value.is_floating_point() or not ours.is_floating_point())
    ]
    infinite = [name for name, value, _ in shared if not value.isfinite().all()]
    problems = (
        _listing("missing", missing)
        + _listing("unexpected", unexpected)
        + _listing("of another shape", shapes)
        + _listing("of another type", dtypes)
        + _listing("infinite or not a number", infinite)
    )
    if problems:
        raise UserError(
            f"{source} does not fit this network:\n{problems}"
            "Check that the network's type is the one these weights were made for."
        )
    model.load_state_dict(dict(weights), strict=False)


def _listing(title: str, names: list[str]) -> str:
    return f"  {title} ({len(names)}): {few(names)}\n" if names else ""


def save_checkpoint(
    path: str | Path, content: Mapping[str, Any], before_replacing: Callable[[], object] | None = None
) -> None:
    """Write a training file as `read_checkpoint` reads it; see `write_atomically`."""
    write_atomically(path, lambda file: torch.save(dict(content), file), before_replacing)
