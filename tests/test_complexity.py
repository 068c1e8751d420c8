"""The count of operations against one written out by hand, from the network's dimensions alone."""

from __future__ import annotations

import pytest
import torch

from CrossVLT import SegModel
from lib.network.complexity import count_flops
from lib.variants import MAX_TOKENS

# nano on an image of 56×56 pixels; all counts below are multiplications.
WIDTHS = (32, 64, 128, 256)  # channels of the four vision stages
SIDES = (14, 7, 4, 2)  # of their maps: a quarter of 56, then halves, rounded up
WINDOWS = (4, 1, 1, 1)  # of 7×7 places, in the padded maps: 14×14 and three times 7×7
PLACES = 49
TEXT, INTERMEDIATE = 128, 512  # BERT's widths
DECODER = 128  # the decoder's width


def attention(queries: int, keys: int, width: int) -> int:
    """QKᵀ and the product with V; all heads together are `width` wide."""
    return 2 * queries * keys * width


def swin_block(stage: int) -> int:
    pixels, width = SIDES[stage] ** 2, WIDTHS[stage]
    qkv = pixels * width * 3 * width  # of padding it is the bias
    windows = WINDOWS[stage] * attention(PLACES, PLACES, width)
    projection = pixels * width * width
    mlp = 2 * pixels * width * 4 * width
    return qkv + windows + projection + mlp


def fusion(pixels: int, width: int, inner: int) -> int:
    """Queries from pixels, keys and values from words, attention, `w_v` and `project_mm`."""
    queries = pixels * width * inner
    keys_and_values = 2 * MAX_TOKENS * TEXT * inner
    return queries + keys_and_values + attention(pixels, MAX_TOKENS, inner) + pixels * inner * width + pixels * width**2


def vision_stage(stage: int) -> int:
    pixels, width = SIDES[stage] ** 2, WIDTHS[stage]
    inner = 64 if stage == 0 else width  # twice as wide in the first stage
    total = 2 * swin_block(stage) + fusion(pixels, width, inner)
    if stage == 3:  # nobody reads what its gate would give
        return total
    merged = SIDES[stage + 1] ** 2
    gates = 2 * pixels * width**2 + 2 * merged * (2 * width) ** 2
    merging = merged * 4 * width * 2 * width
    return total + merging + fusion(merged, 2 * width, 2 * width) + gates


def feed_forward() -> int:
    return 2 * MAX_TOKENS * TEXT * INTERMEDIATE


def bert_layer() -> int:
    """Query, key, value and output projection, attention among the words, feed-forward."""
    return 4 * MAX_TOKENS * TEXT**2 + attention(MAX_TOKENS, MAX_TOKENS, TEXT) + feed_forward()


def language_stage(visual_stage: int) -> int:
    """Words look at what a vision stage hands on, then one layer of BERT."""
    pixels, width = SIDES[visual_stage + 1] ** 2, WIDTHS[visual_stage + 1]
    query_and_output = 2 * MAX_TOKENS * TEXT**2
    keys_and_values = 2 * pixels * width * TEXT
    return query_and_output + keys_and_values + attention(MAX_TOKENS, pixels, TEXT) + feed_forward() + bert_layer()


def decoder() -> int:
    """Three levels of two 3×3 convolutions, then a 1×1 one to background and object."""
    total, above = 0, WIDTHS[3]
    for stage in (2, 1, 0):
        pixels = SIDES[stage] ** 2
        total += pixels * 9 * (above + WIDTHS[stage]) * DECODER + pixels * 9 * DECODER**2
        above = DECODER
    return total + SIDES[0] ** 2 * DECODER * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nano_takes_what_its_dimensions_say(dtype: torch.dtype) -> None:
    """In every number format: PyTorch's kernels of attention differ between them."""
    patches = SIDES[0] ** 2 * (3 * 4 * 4) * WIDTHS[0]
    vision = patches + sum(vision_stage(stage) for stage in range(4))
    language = 2 * bert_layer() + sum(language_stage(stage) for stage in range(3))
    by_hand = 2 * (vision + language + decoder())  # as many additions
    assert by_hand == 339_817_472
    assert count_flops(SegModel("nano", "nano", vocab_size=1000).to(dtype), 56) == by_hand
