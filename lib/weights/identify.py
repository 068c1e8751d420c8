"""Which network a state dict belongs to, by the shapes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lib.variants import BERT_VARIANTS, FUSIONS, SWIN_VARIANTS, Options, SwinVariant


def identify(weights: Mapping[str, Tensor]) -> Options:
    """Return the type, `vocab_size`, `fusion` and `alignment` of the network that a state dict belongs to.

    Raises ValueError where it is no variant of this network.
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
    # The number of heads leaves no trace in the shapes of BERT's weights; everything else decides.
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
    }


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    if name not in weights:
        raise ValueError(f"{name} is missing, so these are no CrossVLT weights")
    shape = weights[name].shape
    if len(shape) != dimensions:
        raise ValueError(f"{name} has {len(shape)} dimensions, not {dimensions}, so these are no CrossVLT weights")
    return shape


def _fusion(weights: Mapping[str, Tensor]) -> str:
    """Return the name in `FUSIONS` of the wiring that a state dict belongs to; ValueError where it is none of them."""
    words_see_pixels = any(".crossattention." in name for name in weights)
    fused_stages = tuple(i for i in range(4) if any(name.startswith(f"backbone.{i}.layers.attn1.") for name in weights))
    for name, wiring in FUSIONS.items():
        if wiring == (words_see_pixels, fused_stages):
            return name
    seeing = "words see pixels" if words_see_pixels else "words see no pixels"
    raise ValueError(f"no fusion ({', '.join(FUSIONS)}) is such that {seeing} and stages {fused_stages} see words")


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Count the numbered modules under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
