"""The constants of the architecture and the protocol, and the names of all variants. Plain data."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, TypedDict


class SwinVariant(NamedTuple):
    """The dimensions of one Swin type."""

    embed_dim: int
    depths: tuple[int, ...]  # number of blocks in each of the four stages
    num_heads: tuple[int, ...]
    window_size: int


class BertVariant(NamedTuple):
    """The dimensions of one BERT type; `num_layers` is the number of layers in language stage 1."""

    hidden_size: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    num_layers: int


SWIN_VARIANTS = {
    "nano": SwinVariant(32, (2, 2, 2, 2), (1, 2, 4, 8), 7),
    "tiny": SwinVariant(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "small": SwinVariant(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "base": SwinVariant(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "large": SwinVariant(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
BERT_VARIANTS = {
    "nano": BertVariant(128, 2, 512, 64, 2),
    "base": BertVariant(768, 12, 3072, 512, 6),
}


class FusionConfig(NamedTuple):
    """Which stages attend to the other modality."""

    vision_to_language: bool  # language stages 2–4 attend to the image; else all text is encoded before the image
    language_to_vision_stages: tuple[int, ...]  # the vision stages, 0–3, that attend to the text


FUSIONS = {
    "cross": FusionConfig(True, (0, 1, 2, 3)),  # the paper's network
    "vision": FusionConfig(
        False, (0, 1, 2, 3)
    ),  # early fusion in the vision encoder only, as in LAVT (arXiv 2112.02244)
    "late": FusionConfig(False, (3,)),  # one fusion after both encoders, see VLT (arXiv 2108.05565)
    "none": FusionConfig(False, ()),  # the first token of the sentence is added to the decoder's input
}

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # see lib/network/precision.py
NO_TARGET_WEIGHT = 0.1  # of the loss of the no-target head, in the sum with those of mask and alignment
MASK_PATCH = 32  # side of the patches of MaskRIS in pixels, unless --mask-patch says otherwise
LOSSES = ("ce", "dice", "ce+dice", "dice2", "ce+dice2")  # of the mask, see lib/network/losses.py
ALIGN_LOSSES = ("bce", "balanced", "focal")  # of the alignment maps, see lib/network/losses.py
STORED_TYPES = ("fp32", "fp16", "bf16", "int8")  # of weights in files, see lib/weights/layouts.py

IMG_SIZE = 480  # default side of the resized images in pixels
MAX_TOKENS = 21  # of a sentence, including [CLS] and [SEP], unless --max-tokens or the data set say otherwise
MOST_TOKENS = max(variant.max_positions for variant in BERT_VARIANTS.values())
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of IoU: P@X is the percentage of expressions with an IoU of at least X


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError unless `name` is among the names `known` of its kind."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: expected one of {', '.join(known)}")


class Options(TypedDict, total=False):
    """The arguments of `CrossVLT.SegModel`."""

    swin_type: str
    bert_type: str
    vocab_size: int
    dropout: float
    drop_path: float
    checkpointing: bool
    freeze_bert: bool
    train_embeddings: bool
    train_temperature: bool
    fusion: str
    alignment: bool
    no_target_head: bool
    align_bias: bool
