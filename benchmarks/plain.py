"""The baseline of all ratios: a plain assembly of the same layers with the same parameters.

It computes like the released implementation. Every Swin block pads, rolls and partitions its map into windows, looks up
its position bias and, if it is shifted, builds its mask; attention is explicit: scores, bias, mask, softmax, product.
Fusion transposes channels-last maps to (B, C, N) and back for Conv1d and InstanceNorm1d. The decoder is NCHW with
separate batch norm and ReLU. Parameters are read by their released names, so the baseline does not depend on how the
network's modules compute.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.contracts import Batch, Output

# A module whose parts are read by their released names, which PyTorch does not type.
Named: TypeAlias = Any

PADDING_BIAS = -1e4
SHIFT_MASK_VALUE = -100.0


class PlainNetwork(nn.Module):
    """A plain forward pass of a `SegModel`, with its parameters, buffers and training mode.

    In training it supports only dropout and drop path of 0; otherwise the two would draw different random numbers.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Named = network

    def forward(self, image: Tensor, token_ids: Tensor, attention_mask: Tensor) -> Output:
        """Image (B, 3, H, W), token_ids and attention_mask (B, N) → `Output`, like `SegModel.forward`."""
        network = self.network
        padding_bias = (1 - attention_mask.to(image.dtype))[:, None, None, :] * PADDING_BIAS  # B, 1, 1, N
        text = network.lang_stage1.embeddings(token_ids)
        for layer in network.lang_stage1.encoder.layer:
            text = bert_layer(layer, text, padding_bias)

        languages = (None, network.lang_stage2, network.lang_stage3, network.lang_stage4)
        x, skips, pixels, texts = patch_embedding(network.backbone[0].patch_embed, image), [], [], []
        for language, vision in zip(languages, network.backbone, strict=True):
            if language is not None:
                text = language_stage(language, text, x.flatten(1, 2), padding_bias)
            skip, merged, block_output = vision_stage(vision, x, text, padding_bias)
            skips.append(skip.permute(0, 3, 1, 2).contiguous())
            pixels.append(block_output)
            texts.append(text)
            x = merged

        logits = decoder(network.classifier, skips)
        logits = F.interpolate(logits.float(), size=image.shape[-2:], mode="bilinear", align_corners=True)
        return Output(logits, alignment(network, pixels, texts) if self.training else ())


def linear(module: Named, x: Tensor) -> Tensor:
    """Apply a Linear to (…, C)."""
    return F.linear(x, module.weight, module.bias)


def layer_norm(module: Named, x: Tensor) -> Tensor:
    """Apply a LayerNorm to (…, C)."""
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, module.eps)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn (B, N, C) into (B, heads, N, C/heads)."""
    return x.reshape(*x.shape[:2], heads, -1).permute(0, 2, 1, 3)


def merge_heads(x: Tensor) -> Tensor:
    """Turn (B, heads, N, C/heads) into (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q·kᵀ/√d + bias)·v of (B, heads, N, d) each; bias broadcasts to (B, heads, N, N)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    attended: Tensor = scores.softmax(dim=-1) @ value
    return attended


# ---------------------------------------------------------------- language stages


def language_stage(stage: Named, text: Tensor, visual: Tensor, padding_bias: Tensor) -> Tensor:
    """Run language stage 2, 3 or 4: text (B, N, D), visual (B, HW, C) → (B, N, D)."""
    cross = stage.crossattention
    heads = bert_heads(text)
    query, key, value = (
        split_heads(linear(cross.self[name], x), heads)
        for name, x in (("query", text), ("key", visual), ("value", visual))
    )
    text = residual_norm(cross.output, merge_heads(attention(query, key, value)), text)
    text = feed_forward(stage, text)
    return bert_layer(stage.layer[0], text, padding_bias)


def bert_layer(layer: Named, text: Tensor, padding_bias: Tensor) -> Tensor:
    """Run one BERT layer on (B, N, D)."""
    projections = layer.attention.self
    query, key, value = (
        split_heads(linear(projection, text), bert_heads(text))
        for projection in (projections.query, projections.key, projections.value)
    )
    attended = merge_heads(attention(query, key, value, padding_bias))
    return feed_forward(layer, residual_norm(layer.attention.output, attended, text))


def feed_forward(module: Named, x: Tensor) -> Tensor:
    """Apply BERT's `intermediate` and `output`."""
    return residual_norm(module.output, F.gelu(linear(module.intermediate.dense, x)), x)


def residual_norm(module: Named, x: Tensor, residual: Tensor) -> Tensor:
    """Apply one of BERT's output modules."""
    return layer_norm(module.LayerNorm, linear(module.dense, x) + residual)


def bert_heads(text: Tensor) -> int:
    """Return BERT's number of heads, which have 64 channels in every variant."""
    return text.shape[-1] // 64


# ---------------------------------------------------------------- vision stages


def patch_embedding(module: Named, image: Tensor) -> Tensor:
    """Turn (B, 3, H, W) into patches (B, H/4, W/4, C), H and W rounded up."""
    height, width = image.shape[-2:]
    image = F.pad(image, (0, -width % 4, 0, -height % 4))
    patches = F.conv2d(image, module.proj.weight, module.proj.bias, stride=4)
    return layer_norm(module.norm, patches.permute(0, 2, 3, 1))


def vision_stage(stage: Named, x: Tensor, text: Tensor, padding_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return skip, map for the next stage (the fused one from the last) and block output, all (B, H, W, C)."""
    layers = stage.layers
    for number, block in enumerate(layers.blocks):
        x = swin_block(block, x, shifted=number % 2 == 1)
    pixels = x
    fused = fusion(layers.attn1, pixels, text, padding_bias)
    skip = layer_norm(stage.get_submodule(f"norm{stage.index}"), fused)
    if layers.downsample is None:
        return skip, fused, pixels
    merged = patch_merging(layers.downsample, gate(layers.linear1, pixels, fused))
    merged = gate(layers.linear2, merged, fusion(layers.attn2, merged, text, padding_bias))
    return skip, merged, pixels


def swin_block(block: Named, x: Tensor, *, shifted: bool) -> Tensor:
    """Run a Swin block on (B, H, W, C)."""
    x = x + attend_in_windows(block.attn, layer_norm(block.norm1, x), shifted=shifted)
    return x + linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, layer_norm(block.norm2, x))))


def attend_in_windows(module: Named, x: Tensor, *, shifted: bool) -> Tensor:
    """Pad, roll, attend inside every window of (B, H, W, C), roll back, crop."""
    height, width = x.shape[1:3]
    window = math.isqrt(module.relative_position_index.shape[0])
    shift = window // 2 if shifted else 0
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    padded_height, padded_width = x.shape[1:3]
    mask = None
    if shift:
        x = x.roll((-shift, -shift), dims=(1, 2))
        mask = shift_mask(padded_height, padded_width, window, shift, x.device)
    windows = window_partition(x, window).flatten(1, 2)
    windows = window_attention(module, windows, mask).unflatten(1, (window, window))
    x = window_reverse(windows, window, padded_height, padded_width)
    if shift:
        x = x.roll((shift, shift), dims=(1, 2))
    return x[:, :height, :width].contiguous()


def window_partition(x: Tensor, window: int) -> Tensor:
    """Partition (B, H, W, C) into (B·windows, window, window, C)."""
    batch, height, width, dim = x.shape
    x = x.view(batch, height // window, window, width // window, window, dim)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, dim)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Merge (B·windows, window, window, C) into (B, H, W, C)."""
    dim = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, dim)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, dim)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return the additive mask (windows, N, N) of a shifted map, as in Swin's code."""
    regions = torch.zeros(1, height, width, 1, device=device)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bands for columns in bands):
        regions[:, rows, columns] = number
    regions = window_partition(regions, window).flatten(1)
    difference = regions[:, None, :] - regions[:, :, None]
    return difference.masked_fill(difference != 0, SHIFT_MASK_VALUE)


def window_attention(module: Named, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attend inside windows (B·windows, N, C); mask: (windows, N, N) or None."""
    rows, n_tokens, dim = x.shape
    heads = module.relative_position_bias_table.shape[1]
    qkv = linear(module.qkv, x).reshape(rows, n_tokens, 3, heads, dim // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # rows, heads, N, C/heads each
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    bias = module.relative_position_bias_table[module.relative_position_index.flatten()]
    scores = scores + bias.view(n_tokens, n_tokens, heads).permute(2, 0, 1).contiguous()
    if mask is not None:
        scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
    return linear(module.proj, merge_heads(scores.softmax(dim=-1) @ value))


def patch_merging(module: Named, x: Tensor) -> Tensor:
    """Turn (B, H, W, C) into (B, H/2, W/2, 2C), H and W rounded up."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return linear(module.reduction, layer_norm(module.norm, torch.cat(corners, dim=-1)))


def fusion(module: Named, visual: Tensor, text: Tensor, padding_bias: Tensor) -> Tensor:
    """Apply cross-attention from pixels (B, H, W, C) to words (B, N, D); returns (B, H, W, C)."""
    query = F.instance_norm(conv1d(module.v_q[0], visual.flatten(1, 2).permute(0, 2, 1)))  # B, inner, HW
    key, value = linear(module.l_q, text), linear(module.values_l, text)
    heads = max(1, key.shape[-1] // 64)
    query, key, value = (split_heads(x, heads) for x in (query.permute(0, 2, 1), key, value))
    attended = merge_heads(attention(query, key, value, padding_bias)).permute(0, 2, 1)  # B, inner, HW
    attended = F.instance_norm(conv1d(module.w_v[0], attended))  # B, C, HW
    fused = F.gelu(conv1d(module.project_mm[0], attended + visual.flatten(1, 2).permute(0, 2, 1)))
    return fused.permute(0, 2, 1).contiguous().view(visual.shape)


def conv1d(module: Named, x: Tensor) -> Tensor:
    """Apply a 1×1 Conv1d to (B, C, N)."""
    return F.conv1d(x.contiguous(), module.weight, module.bias)


def gate(module: Named, x: Tensor, fused: Tensor) -> Tensor:
    """Return x + tanh(W₂·relu(W₁·fused)) ⊙ fused."""
    return x + linear(module[2], F.relu(linear(module[0], fused))).tanh() * fused


# ---------------------------------------------------------------- decoder, alignment, loss


def decoder(module: Named, skips: list[Tensor]) -> Tensor:
    """Turn skips 0–3, each (B, C, H_i, W_i), into logits (B, 2, H_0, W_0)."""
    x = skips[3]
    for level, skip in ((4, skips[2]), (3, skips[1]), (2, skips[0])):
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True)
        x = torch.cat([x, skip], dim=1)
        for number in (1, 2):
            convolution = module.get_submodule(f"conv{number}_{level}")
            x = F.conv2d(x, convolution.weight, padding=1)
            x = F.relu(batch_norm(module.get_submodule(f"bn{number}_{level}"), x))
    return F.conv2d(x, module.conv1_1.weight, module.conv1_1.bias)


def batch_norm(module: Named, x: Tensor) -> Tensor:
    """Apply batch norm to (B, C, H, W); in training it updates the running statistics."""
    statistics = (module.running_mean, module.running_var)
    return F.batch_norm(x, *statistics, module.weight, module.bias, module.training, module.momentum, module.eps)


def alignment(network: Named, pixels: list[Tensor], texts: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the similarity of pixels (B, H, W, C) and sentence (B, N, D) per stage: four maps (B, 1, H_i, W_i)."""
    projections = [network.lang_stage1.encoder.proj]
    projections += [stage.proj for stage in (network.lang_stage2, network.lang_stage3, network.lang_stage4)]
    maps = []
    for index, (vision, projection) in enumerate(zip(network.backbone, projections, strict=True)):
        visual = linear(vision.layers.proj, pixels[index]).float()
        sentence = linear(projection, texts[index][:, 0])[:, None, None, :].float()
        similarity = F.cosine_similarity(visual, sentence, dim=-1).unsqueeze(1)
        maps.append(similarity / network.temp[index])
    return tuple(maps)


def plain_loss(output: Output, target: Tensor) -> Tensor:
    """Return the training loss, (); target: (B, H, W) int64."""
    weights = torch.tensor([0.9, 1.1], device=target.device)
    loss = 2 * F.cross_entropy(output.logits, target, weight=weights)
    for similarity in output.alignment:
        similarity = F.interpolate(similarity, size=target.shape[-2:], mode="bilinear", align_corners=True)
        loss = loss + F.binary_cross_entropy_with_logits(similarity.squeeze(1), target.float())
    return loss


def plain_step(network: PlainNetwork, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """Take one training step; batch: on the network's device. Returns the loss, ()."""
    loss = plain_loss(network(batch.image, batch.token_ids, batch.attention_mask), batch.stacked_target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()
