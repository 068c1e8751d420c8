"""Identifying the network that a state dict belongs to, by the shapes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lib.variants import BERT_VARIANTS, FUSIONS, SWIN_VARIANTS, FusionConfig, Options, SwinVariant


def identify(weights: Mapping[str, Tensor]) -> Options:
    """Return type, `vocab_size` and options (`fusion`, `alignment`, …) of the network that a state dict belongs to.

    Raises ValueError if it does not belong to any variant of this network.
    """
    stages = [f"backbone.{stage}.layers.blocks." for stage in range(4)]
    bias_tables = [_shape(weights, f"{stage}0.attn.relative_position_bias_table", 2) for stage in stages]
    swin = SwinVariant(
        embed_dim=_shape(weights, "backbone.0.patch_embed.proj.weight", 4)[0],
        depths=tuple(_count(weights, stage) for stage in stages),
        num_heads=tuple(heads for _, heads in bias_tables),
        window_size=(math.isqrt(bias_tables[0][0]) + 1) // 2,
    )
    vocab_size, hidden_size = _shape(weights, "lang_stage1.embeddings.word_embeddings.weight", 2)
    intermediate_size = _shape(weights, "lang_stage1.encoder.layer.0.intermediate.dense.weight", 2)[0]
    max_positions = _shape(weights, "lang_stage1.embeddings.position_embeddings.weight", 2)[0]
    num_layers = _count(weights, "lang_stage1.encoder.layer.")
    # The number of heads does not appear in the shapes of BERT's weights.
    sizes = (hidden_size, intermediate_size, max_positions, num_layers)
    swin_types = [name for name, variant in SWIN_VARIANTS.items() if variant == swin]
    bert_types = [name for name, v in BERT_VARIANTS.items() if (v.hidden_size, *v[2:]) == sizes]
    if not swin_types or not bert_types:
        raise ValueError(f"no variant has {swin} with a BERT of (hidden, intermediate, positions, layers) {sizes}")
    return {
        "swin_type": swin_types[0],
        "bert_type": bert_types[0],
        "vocab_size": vocab_size,
        "fusion": _fusion(weights),
        "alignment": "backbone.0.layers.proj.weight" in weights,
        "no_target_head": "no_target_head.classify.weight" in weights,
        "align_bias": "align_bias" in weights,
    }


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    if name not in weights:
        raise ValueError(f"{name} is missing, so these are no CrossVLT weights")
    shape = weights[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has {len(shape)} dimensions, not {dimensions}, so these are no CrossVLT weights")
    return shape


def _fusion(weights: Mapping[str, Tensor]) -> str:
    """Return the fusion variant of a state dict, a key of `FUSIONS`; ValueError if there is none."""
    config = FusionConfig(
        vision_to_language=any(".crossattention." in name for name in weights),
        language_to_vision_stages=tuple(
            stage for stage in range(4) if any(name.startswith(f"backbone.{stage}.layers.attn1.") for name in weights)
        ),
    )
    for name, known in FUSIONS.items():
        if known == config:
            return name
    raise ValueError(f"no fusion variant ({', '.join(FUSIONS)}) has {config}")


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of numbered modules under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
