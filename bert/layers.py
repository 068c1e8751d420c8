"""BERT's embeddings and layers (Devlin et al., arXiv 1810.04805), with their names in a BERT file.

A test checks that the layers of `transformers` give bit for bit the same results. They are not used because importing
`transformers` takes longer than importing PyTorch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-12
TOKEN_TYPES = 2  # first and second sentence; only the first is used here


class BertConfig(NamedTuple):
    """The dimensions and the dropout of BERT's layers."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    dropout: float  # of hidden states and of attention, in [0, 1)


class BertEmbeddings(nn.Module):
    """The sum of word, position and token type embeddings, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(TOKEN_TYPES, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embed token ids (B, N) int64: (B, N, D)."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None]
        text = self.word_embeddings(token_ids) + self.token_type_embeddings(torch.zeros_like(token_ids))
        return self.dropout(self.LayerNorm(text + self.position_embeddings(positions)))


class BertSelfAttention(nn.Module):
    """Multi-head self-attention of the tokens, without the output projection."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, text: Tensor, padding_bias: Tensor) -> Tensor:
        """Text (B, N, D), padding_bias (B, 1, 1, N) → (B, N, D)."""
        query, key, value = (split_heads(part(text), self.num_heads) for part in (self.query, self.key, self.value))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=padding_bias, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class BertResidual(nn.Module):
    """A linear layer, dropout, residual and LayerNorm: BERT's SelfOutput and Output."""

    def __init__(self, config: BertConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, text: Tensor) -> Tensor:
        """Hidden (B, N, in_features), text (B, N, D), the residual → (B, N, D)."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + text)


class BertAttention(nn.Module):
    """Self-attention with output projection and residual."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidual(config, config.hidden_size)

    def forward(self, text: Tensor, padding_bias: Tensor) -> Tensor:
        """text (B, N, D), padding_bias (B, 1, 1, N) → (B, N, D)."""
        return self.output(self.self(text, padding_bias), text)


class BertIntermediate(nn.Module):
    """The first half of the feed-forward: a linear layer and GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, text: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, intermediate_size)."""
        return F.gelu(self.dense(text))


class BertLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config, config.intermediate_size)

    def forward(self, text: Tensor, padding_bias: Tensor) -> Tensor:
        """text (B, N, D), padding_bias (B, 1, 1, N) → (B, N, D)."""
        text = self.attention(text, padding_bias)
        return self.output(self.intermediate(text), text)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn (B, N, D) into (B, heads, N, D/heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
