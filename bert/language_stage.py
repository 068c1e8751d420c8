"""Language stages: BERT layers with cross-attention from words to pixels between them.

Source: arXiv 2408.07539. The BERT layers are in bert/layers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from bert.layers import (
    BertConfig,
    BertEmbeddings,
    BertIntermediate,
    BertLayer,
    BertResidual,
    split_heads,
)


class Layers(nn.Module):
    """BERT layers with their names in a BERT file, encoder.layer.*, and the projection for alignment."""

    proj: nn.Linear

    def __init__(self, config: BertConfig, num_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(num_layers))


class LanguageStage1(nn.Module):
    """BERT's embeddings and first layers, without the image."""

    def __init__(self, config: BertConfig, num_layers: int, align_dim: int) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = Layers(config, num_layers)
        self.apply(_init_weights)
        self.encoder.proj = nn.Linear(config.hidden_size, align_dim)

    def forward(self, token_ids: Tensor, padding_bias: Tensor) -> Tensor:
        """Encode token ids (B, N) int64; padding_bias (B, 1, 1, N) as in `LanguageStage`. Return (B, N, D)."""
        text = self.embeddings(token_ids)
        for layer in self.encoder.layer:
            text = layer(text, padding_bias)
        return text

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward

    def project(self, text: Tensor) -> Tensor:
        """Project the first token of (B, N, D) for alignment: (B, align_dim)."""
        return self.encoder.proj(text[:, 0])


class LanguageStage(nn.Module):
    """Language stages 2–4: cross-attention to the previous vision stage, feed-forward, and one BERT layer."""

    def __init__(self, config: BertConfig, visual_dim: int, align_dim: int) -> None:
        super().__init__()
        self.crossattention = CrossAttention(config, visual_dim)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config, config.intermediate_size)
        self.layer = nn.ModuleList([BertLayer(config)])
        self.proj = nn.Linear(config.hidden_size, align_dim)
        self.apply(_init_weights)

    def forward(self, text: Tensor, visual: Tensor, padding_bias: Tensor) -> Tensor:
        """Refine the text (B, N, D) with the visual tokens (B, HW, C).

        padding_bias: (B, 1, 1, N), added to the scores of self-attention, 0 for words and -10⁴ for padding.
        """
        text = self.crossattention(text, visual)
        text = self.output(self.intermediate(text), text)
        return self.layer[0](text, padding_bias)

    def project(self, text: Tensor) -> Tensor:
        """Project the first token of (B, N, D) for alignment: (B, align_dim)."""
        return self.proj(text[:, 0])


class TextOnlyStage(nn.Module):
    """Language stages 2–4 of a variant whose words do not attend to pixels.

    It has the depth and width of `LanguageStage`: a second BERT layer replaces cross-attention and feed-forward.
    """

    def __init__(self, config: BertConfig, align_dim: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(2))
        self.proj = nn.Linear(config.hidden_size, align_dim)
        self.apply(_init_weights)

    def forward(self, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Refine the text (B, N, D); padding_bias as in `LanguageStage`."""
        for layer in self.layer:
            text = layer(text, padding_bias)
        return text

    def project(self, text: Tensor) -> Tensor:
        """Project the first token of (B, N, D) for alignment: (B, align_dim)."""
        return self.proj(text[:, 0])


class CrossAttention(nn.Module):
    """Cross-attention from words to pixels, followed by BERT's output projection, residual and LayerNorm."""

    def __init__(self, config: BertConfig, visual_dim: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(config.hidden_size, config.hidden_size),
                "key": nn.Linear(visual_dim, config.hidden_size),
                "value": nn.Linear(visual_dim, config.hidden_size),
            }
        )
        self.output = BertResidual(config, config.hidden_size)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """text (B, N, D), visual (B, HW, C) → (B, N, D)."""
        query = split_heads(self.self["query"](text), self.num_heads)
        key = split_heads(self.self["key"](visual), self.num_heads)
        value = split_heads(self.self["value"](visual), self.num_heads)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2), text)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
