"""Pretrained weights: Swin and BERT files, renamed to the names of the network and loaded strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from lib.hub import PRETRAINED_DIR, find_file, is_hub_name
from lib.network.precision import at_least_float32
from lib.weights.checkpoint import load_weights, read_checkpoint

NONE = "none"  # the value of either flag that starts from scratch
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SWIN_FILES = {
    "tiny": "swin_tiny_patch4_window7_224.pth",
    "small": "swin_small_patch4_window7_224.pth",
    "base": "swin_base_patch4_window12_384_22k.pth",
    "large": "swin_large_patch4_window12_384_22k.pth",
}
SWIN_URL = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
BERT_NAMES = {"base": "bert-base-uncased"}
RELEASED_BERT = "https://huggingface.co/google/bert_uncased_L-12_H-768_A-12/blob/main/pytorch_model.bin"


def default_swin(swin_type: str) -> str:
    """Return the expected path of a Swin type's official file; `none` for a type without one."""
    return str(PRETRAINED_DIR / SWIN_FILES[swin_type]) if swin_type in SWIN_FILES else NONE


def default_bert(bert_type: str) -> str:
    """Return the hub name of a BERT type; `none` for a type without one."""
    return BERT_NAMES.get(bert_type, NONE)


def load_swin(model: nn.Module, name: str, swin_type: str) -> None:
    """Load the Swin blocks, patch embedding and merging from a file or hub name; `none` does nothing.

    Reads Microsoft's official files and those of timm; position biases for another window size are interpolated.
    Raises UserError if the file is missing, damaged or does not fit.
    """
    path = find_swin(name, swin_type)
    if path is None:
        return
    weights = swin_weights(read_checkpoint(path).weights)
    ours = model.state_dict()
    for key in weights.keys() & ours.keys():
        if key.endswith("relative_position_bias_table"):
            weights[key] = resize_position_bias(weights[key], ours[key].shape[0])
    load_weights(model, weights, path, expected=filter(_is_from_swin, ours))


def find_swin(name: str, swin_type: str, *, offline: bool = False) -> Path | None:
    """Return the file of Swin weights by its name; None for `none`. offline: do not ask the hub.

    Raises UserError, with what to download and where to put it, if it is missing.
    """
    if name == NONE:
        return None
    advice = "Pass --pretrained_swin_weights none to start from scratch."
    if is_hub_name(name):
        advice = f"{_manual_download(name)} {advice}"
    elif swin_type in SWIN_FILES:
        advice = f"Download {SWIN_URL}{SWIN_FILES[swin_type]} to {default_swin(swin_type)}. {advice}"
    return find_file(name, WEIGHT_FILES, flag="--pretrained_swin_weights", advice=advice, offline=offline)


def load_bert(model: nn.Module, name: str) -> None:
    """Load language stage 1 from a BERT file, folder or hub name; `none` does nothing.

    Raises UserError if the file is missing, damaged or does not fit.
    """
    path = find_bert(name)
    if path is None:
        return
    ours = [key for key in model.state_dict() if _is_from_bert(key)]
    num_layers = len({key.split(".")[3] for key in ours if key.startswith("lang_stage1.encoder.layer.")})
    load_weights(model, bert_weights(read_checkpoint(path).weights, num_layers), path, expected=ours)


def find_bert(name: str, *, offline: bool = False) -> Path | None:
    """Return the file of BERT weights by its name, as `find_swin` does."""
    if name == NONE:
        return None
    download = _manual_download(name if is_hub_name(name) else BERT_NAMES["base"])
    advice = f"{download} The released code uses {RELEASED_BERT}. Pass --ck_bert none to start from scratch."
    return find_file(name, WEIGHT_FILES, flag="--ck_bert", advice=advice, offline=offline)


def _manual_download(name: str) -> str:
    files = " or ".join(WEIGHT_FILES)
    return f"Download {files} from https://huggingface.co/{name}/tree/main into {PRETRAINED_DIR / name}."


def is_pretrained(name: str) -> bool:
    """Return whether a Swin or BERT file can fill an entry of the state dict, by its name."""
    return _is_from_swin(name) or _is_from_bert(name)


def _is_from_swin(name: str) -> bool:
    parts = (".patch_embed.", ".layers.blocks.", ".layers.downsample.")
    return any(part in name for part in parts) and not name.endswith("relative_position_index")


def _is_from_bert(name: str) -> bool:
    return name.startswith(("lang_stage1.embeddings.", "lang_stage1.encoder.layer."))


def swin_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a Swin file to the names of the network.

    Drops the classifier, the final norm, and the masks and position index, which the network computes itself. Official
    files merge patches at the end of a stage, timm's at the beginning of the next: only the former have
    `layers.0.downsample`.
    """
    official = "layers.0.downsample.reduction.weight" in weights
    renamed = {}
    for name, value in weights.items():
        if name.startswith(("norm.", "head.")) or name.endswith(("attn_mask", "relative_position_index")):
            continue
        if name.startswith("patch_embed."):
            name = f"backbone.0.{name}"
        elif match := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
            stage, rest = int(match[1]), match[2]
            if rest.startswith("downsample.") and not official:
                stage -= 1
            name = f"backbone.{stage}.layers.{rest}"
        renamed[name] = value
    return renamed


def bert_weights(weights: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Rename the entries of a BERT file to the names of language stage 1, which uses its first `num_layers` layers.

    Drops the deeper layers, the pooler and the pre-training heads. TensorFlow's `gamma` and `beta` become `weight` and
    `bias`.
    """
    renamed = {}
    for name, value in weights.items():
        name = name.removeprefix("bert.")
        match = re.match(r"encoder\.layer\.(\d+)\.", name)
        if name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids":
            continue
        if match and int(match[1]) >= num_layers:
            continue
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        renamed[f"lang_stage1.{name}"] = value
    return renamed


def resize_position_bias(table: Tensor, n_offsets: int) -> Tensor:
    """Interpolate a relative position bias table to another window size.

    table: (offsets, heads) with offsets = (2·window − 1)². Returns (n_offsets, heads), interpolated bicubically as in
    Swin's fine-tuning code, or the table itself if the sizes are equal.
    """
    if table.shape[0] == n_offsets:
        return table
    old, new = math.isqrt(table.shape[0]), math.isqrt(n_offsets)
    if old * old != table.shape[0]:
        return table  # not from a square window; the strict loader reports it
    grid = at_least_float32(table.T.reshape(1, -1, old, old))
    resized = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, n_offsets).T.to(table.dtype).contiguous()
