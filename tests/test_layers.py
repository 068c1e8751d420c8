"""What is written out here for the sake of quick starts computes what the libraries compute, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import transformers
from timm.models import swin_transformer
from torch import nn
from transformers.models.bert import modeling_bert

from bert.layers import BertConfig, BertEmbeddings, BertLayer
from bert.tokenizer import make_tokenizer
from data.sample.make import vocabulary
from lib.network.swin import DropPath, fill_normal_, relative_position_index
from lib.network.vision_stage import PatchEmbed, PatchMerging

OWN = BertConfig(50, 32, 4, 64, 16, 0.1)
THEIRS = transformers.BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
    attn_implementation="sdpa",  # type: ignore[call-arg]  # handed on to its base, as the docs say
)
TOKENS = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
BIAS = torch.zeros(2, 1, 1, 9).index_fill(3, torch.tensor([7, 8]), -1e4)
PATCHES: dict[str, Any] = {"img_size": None, "patch_size": 4, "embed_dim": 8, "norm_layer": nn.LayerNorm}
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    "embeddings": (lambda: BertEmbeddings(OWN), lambda: modeling_bert.BertEmbeddings(THEIRS), (TOKENS,)),
    "layer": (lambda: BertLayer(OWN), lambda: modeling_bert.BertLayer(THEIRS), (TEXT, BIAS)),
    "patches": (
        lambda: PatchEmbed(8),
        lambda: timm.layers.PatchEmbed(**PATCHES, output_fmt="NHWC", dynamic_img_pad=True),
        (torch.randn(2, 3, 13, 10),),
    ),
    "merging": (lambda: PatchMerging(8), lambda: swin_transformer.PatchMerging(8), (torch.randn(2, 5, 6, 8),)),
    "drop path": (lambda: DropPath(0.3), lambda: timm.layers.DropPath(0.3), (torch.randn(9, 4, 4, 8),)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_modules_are_those_of_the_libraries(name: str) -> None:
    """In training, where dropout draws from one seed: starting weights, output and gradients."""
    own, theirs = (outcome(build, PAIRS[name][2]) for build in PAIRS[name][:2])
    assert own.keys() == theirs.keys()
    assert [key for key in own if not torch.equal(own[key], theirs[key])] == []


def outcome(build: Callable[[], nn.Module], inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    module = build().train()
    output = module(*inputs)
    found = {f"weight {key}": value.clone() for key, value in module.state_dict().items()} | {"output": output}
    if parameters := dict(module.named_parameters()):
        (output * torch.linspace(0, 1, output.numel()).view(output.shape)).sum().backward()
        found |= {f"gradient {key}": parameter.grad for key, parameter in parameters.items()}
    return found


def test_starting_values_and_position_index_are_timms() -> None:
    own, theirs = torch.empty(40, 30), torch.empty(40, 30)
    torch.manual_seed(5)
    fill_normal_(own)
    torch.manual_seed(5)
    timm.layers.trunc_normal_(theirs, std=0.02)
    assert torch.equal(own, theirs)
    for window in (7, 12):
        index = swin_transformer.get_relative_position_index(window, window)
        assert torch.equal(relative_position_index(window), index)


def test_tokens_are_those_of_transformers() -> None:
    words = vocabulary()
    texts = [
        "The RED circle",
        "",
        "a [MASK] of [SEP] and [CLS]",
        "Café naïve 中文 #1's",
        "x" * 200,
        "tab\tand  spaces ",
    ]
    own = make_tokenizer(words, "here")
    theirs = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    assert len(own) == len(theirs)
    assert own(texts) == theirs(texts)["input_ids"]
    for text in texts:
        offsets = theirs(text, return_offsets_mapping=True)["offset_mapping"][1:-1]
        assert own.split(text) == (own([text])[0], [start for start, _ in offsets])
