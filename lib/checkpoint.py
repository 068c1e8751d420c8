"""Weights and training states in files: reading what others made, saving and loading our own.

Nothing in a file is trusted: pickles are read with `weights_only=True`, which runs no code of theirs.
"""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from utils import UserError

OPTIONAL = frozenset({"temp"})  # absent from released files; never trained, so its initial value is right


@dataclass
class Checkpoint:
    """What a weight or training file holds."""

    path: Path
    weights: dict[str, Tensor]  # by the names of `SegModel.state_dict()`
    args: dict[str, Any] = field(default_factory=dict)  # the training's options; empty for bare weights
    state: dict[str, Any] = field(default_factory=dict)  # everything else, for resuming


def read_file(path: str | Path) -> Any:
    """Return the content of a `.safetensors` file or a PyTorch file, on the CPU.

    Of pickled classes only tensors, plain containers and `argparse.Namespace` are admitted. Raises UserError where
    the file is missing, damaged or wants anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weight file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} was refused: it is damaged, or it holds more than weights and would run code of its own. "
            "Nothing of it was run. Ask its author for a file that holds tensors only."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} could not be read as weights ({reason}): fetch or copy it again") from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read released weights (a bare state dict) or a training file (`model`, `epoch`, `args`, …), own or released.

    Raises UserError where there are no weights in it.
    """
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, expected a state dict or a training file")
    is_training_file = isinstance(content.get("model"), Mapping)
    weights = dict(content["model"] if is_training_file else content)
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict, neither bare nor under 'model'")
    state = {name: value for name, value in content.items() if name != "model"} if is_training_file else {}
    args = state.pop("args", {})
    args = vars(args) if isinstance(args, argparse.Namespace) else dict(args)
    return Checkpoint(Path(path), strip_prefix(weights), args, state)


def strip_prefix(weights: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """Drop a prefix that every name carries, as DistributedDataParallel leaves it."""
    if all(name.startswith(prefix) for name in weights):
        return {name.removeprefix(prefix): value for name, value in weights.items()}
    return dict(weights)


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], source: object, expected: Iterable[str] | None = None
) -> None:
    """Copy `weights` into the model, strictly.

    expected: the names that `source` must provide; all of the model's where not given. Raises UserError that lists
    missing and unexpected names and wrong shapes, and changes nothing then.
    """
    own = model.state_dict()
    expected = set(own) - OPTIONAL if expected is None else set(expected)
    missing = sorted(expected - set(weights))
    unexpected = sorted(set(weights) - expected - (OPTIONAL & set(own)))
    shapes = [
        f"{name} is {list(value.shape)}, expected {list(own[name].shape)}"
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = _listing("missing", missing) + _listing("unexpected", unexpected) + _listing("of another shape", shapes)
    if problems:
        raise UserError(
            f"{source} does not fit this network:\n{problems}"
            "Check that the network's type is the one these weights were made for."
        )
    model.load_state_dict(dict(weights), strict=False)


def _listing(title: str, names: list[str]) -> str:
    return f"  {title} ({len(names)}): {', '.join(names)}\n" if names else ""


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a training file as `read_checkpoint` reads it; what is at `path` is replaced in one step."""
    write_atomically(path, lambda file: torch.save(dict(content), file))


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file whose name appears, or is replaced, only when its content is complete on the disk.

    Raises UserError where it cannot be written, such as on a full disk; what was there before is kept then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise UserError(f"{path} could not be written ({error}); what was there before is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)
