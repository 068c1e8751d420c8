"""Every number of the network's architecture and of the protocol, and the names of what a run chooses: plain data."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, TypedDict


class SwinVariant(NamedTuple):
    """The numbers of one Swin type."""

    embed_dim: int
    depths: tuple[int, ...]  # of its four stages
    num_heads: tuple[int, ...]
    window_size: int


class BertVariant(NamedTuple):
    """The numbers of one BERT type; `num_layers` are those of language stage 1."""

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


class Wiring(NamedTuple):
    """Who looks at whom."""

    words_see_pixels: bool  # at language stages 2–4; else the text is finished before the pixels begin
    fused_stages: tuple[int, ...]  # the vision stages, 0–3, whose pixels look at the text


FUSIONS = {
    "cross": Wiring(True, (0, 1, 2, 3)),  # the paper's network
    "vision": Wiring(False, (0, 1, 2, 3)),  # early fusion in the vision encoder alone, as in LAVT (arXiv 2112.02244)
    "late": Wiring(False, (3,)),  # one fusion behind both encoders, as in VLT (arXiv 2108.05565)
    "none": Wiring(False, ()),  # the sentence's first token joins the decoder's input
}

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")  # see lib/network/precision.py
LOSSES = ("ce", "dice", "ce+dice")  # of the mask, see lib/network/losses.py
STORED_TYPES = ("fp32", "fp16", "bf16", "int8")  # of weights in files, see lib/weights/layouts.py

IMG_SIZE = 480  # pixels on a side that images are resized to, unless a run says otherwise
MAX_TOKENS = 21  # of a sentence, [CLS] and [SEP] among them
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of IoU: P@X is the share of the expressions that reach X


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
