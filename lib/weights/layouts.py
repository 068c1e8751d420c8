"""The layout of this project's safetensors files: weights, optionally rounded, and metadata.

The file's metadata has an entry `crossvlt` with JSON: `args`, the options of the training; `state`, its epoch and
scores; `vocabulary`, the words of the tokenizer or null. For a weight rounded to int8 there is also a tensor of scales
under its name followed by SCALE: one float32 for each index of the first dimension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from errors import UserError
from lib.contents import ABOUT
from lib.schema import parse_json
from lib.texts import showable
from lib.variants import STORED_TYPES

ENTRY = "crossvlt"
SCALE = "::scale"
DTYPES = dict(zip(STORED_TYPES, (torch.float32, torch.float16, torch.bfloat16, torch.int8), strict=True))
MIN_ROUNDED = 4096  # smaller tensors are not rounded to int8
LEVELS = 127  # of int8


def read_about(path: Path) -> dict[str, Any] | None:
    """Return the metadata of a safetensors file of this project; None for other files.

    Raises UserError if the metadata is not as this project writes it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ENTRY)
    except SafetensorError:
        return None  # a pickle
    if text is None:
        return None
    source = f"{path}: the entry {ENTRY!r} of its metadata"
    about: dict[str, Any] = parse_json(text, ABOUT, source, "none that this project writes")
    return about


def write_about(args: Mapping[str, Any], state: Mapping[str, Any], vocabulary: list[str] | None) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    about = {"args": dict(args), "state": dict(state), "vocabulary": vocabulary}
    return {"format": "pt", ENTRY: showable(json.dumps(about, ensure_ascii=False))}


def store(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the tensors to write to a file; dtype: fp32, fp16, bf16 or int8 (small and integer tensors are kept)."""
    stored = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        if not value.is_floating_point() or (dtype == "int8" and (value.dim() < 2 or value.numel() < MIN_ROUNDED)):
            stored[name] = value
        elif dtype == "int8":
            stored[name], stored[name + SCALE] = _round(value.float())
        else:
            stored[name] = value.to(DTYPES[dtype])
    return stored


def _round(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values and their float32 scales, one for each index of the first dimension."""
    scale = value.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    steps = scale.view(-1, *[1] * (value.dim() - 1))
    return (value / steps).round().to(torch.int8), scale


def restore(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the original weights of `store` as float32, up to rounding.

    Raises UserError if scales do not fit their weight.
    """
    weights = {}
    for name, value in stored.items():
        if name.endswith(SCALE):
            continue
        if name + SCALE in stored:
            scale = stored[name + SCALE]
            if value.dim() < 2 or scale.shape != value.shape[:1]:
                raise UserError(f"{name + SCALE} is {list(scale.shape)}, which does not fit {list(value.shape)}")
            value = value.float() * scale.view(-1, *[1] * (value.dim() - 1))
        weights[name] = value.float() if value.is_floating_point() else value
    return weights
