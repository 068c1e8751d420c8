"""One vision stage: Swin blocks, fusion with the text, patch merging (arXiv 2408.07539)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lib.network.fusion import Fusion, Gate, NoFusion, NoGate
from lib.network.swin import SwinBlock, fill_normal_


class VisionOutput(NamedTuple):
    """The output of a vision stage; all maps are channels-last."""

    skip: Tensor  # (B, H, W, C), normalised fused features for the decoder
    next: Tensor | None  # (B, H/2, W/2, 2C) for the next stages; None from the last stage
    pixels: Tensor  # (B, H, W, C), block output before fusion, which alignment compares with the text


class PatchEmbed(nn.Module):
    """Patches of 4×4 pixels, embedded and normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, H/4, W/4, C), rounded up."""
        height, width = image.shape[-2:]
        patches = self.proj(F.pad(image, (0, -width % 4, 0, -height % 4)))
        return self.norm(patches.permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Merges 2×2 pixels into one with twice as many channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H/2, W/2, 2C), rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, dim = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, dim).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class StageLayers(nn.Module):
    """Blocks, fusion and patch merging of one stage (`backbone.{i}.layers` in released weights)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int,
        drop_path: Sequence[float],
        text_dim: int,
        align_dim: int,
        fusion_dim: int,
        last: bool,
        checkpointing: bool,
    ) -> None:
        """drop_path: rate of each block. checkpointing: recompute activations in the backward pass, from the inputs of
        each module.
        """
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                num_heads,
                window_size=window_size,
                shift=window_size // 2 if number % 2 else 0,
                drop_path=rate,
            )
            for number, rate in enumerate(drop_path)
        )
        self.proj = nn.Linear(dim, align_dim)
        self.attn1: Fusion | NoFusion = Fusion(dim, text_dim, fusion_dim)
        self.linear1: Gate | NoGate = Gate(dim)
        self.downsample: PatchMerging | None = None
        if last:
            # The output of the last gate is never read; the gate exists because released weights contain it.
            self.linear1.requires_grad_(False)
        else:
            self.downsample = PatchMerging(dim)
            self.attn2: Fusion | NoFusion = Fusion(2 * dim, text_dim, 2 * dim)
            self.linear2: Gate | NoGate = Gate(2 * dim)

    def forward(self, x: Tensor, text: Tensor, padding_bias: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the fused map, the map for the next stage (None from the last stage) and the block output."""
        for block in self.blocks:
            x = self._run(block, x)
        pixels = x
        fused = self._run(self.attn1, pixels, text, padding_bias)
        if self.downsample is None:
            return fused, None, pixels
        merged = self._run(self.downsample, self._run(self.linear1, pixels, fused))
        merged = self._run(self.linear2, merged, self._run(self.attn2, merged, text, padding_bias))
        return fused, merged, pixels

    if TYPE_CHECKING:
        __call__ = forward

    def _run(self, module: nn.Module, *inputs: Tensor) -> Tensor:
        # Only vision stages are recomputed, because they hold most activations. The decoder has a tenth of them for
        # half of all operations, and recomputing it would update its running statistics twice.
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)


class VisionStage(nn.Module):
    """Vision stage `index` (0–3); stage 0 begins with the patch embedding."""

    def __init__(
        self,
        index: int,
        *,
        embed_dim: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        text_dim: int,
        align_dim: int,
        last: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        dim = embed_dim * 2**index
        self.index = index
        if index == 0:
            self.patch_embed = PatchEmbed(dim)
        self.layers = StageLayers(
            dim,
            num_heads,
            window_size=window_size,
            drop_path=drop_path,
            text_dim=text_dim,
            align_dim=align_dim,
            fusion_dim=2 * dim if index == 0 else dim,
            last=last,
            checkpointing=checkpointing,
        )
        self.add_module(f"norm{index}", nn.LayerNorm(dim))  # numbered in released weights
        self.apply(_init_weights)

    def forward(self, x: Tensor, text: Tensor, padding_bias: Tensor) -> VisionOutput:
        """Run the stage on the image (B, 3, H, W) (stage 0) or the previous stage's `next` (B, H, W, C).

        text: (B, N, D). padding_bias: (B, 1, 1, N), 0 for words and -10⁴ for padding.
        """
        if self.index == 0:
            x = self.patch_embed(x)
        fused, merged, pixels = self.layers(x, text, padding_bias)
        skip = self.get_submodule(f"norm{self.index}")(fused)
        return VisionOutput(skip, merged, pixels)

    if TYPE_CHECKING:  # PyTorch does not type the result of calling a module
        __call__ = forward


if TYPE_CHECKING:

    class VisionStages(nn.ModuleList):
        """A ModuleList with the type of its items."""

        def __getitem__(self, index: int) -> VisionStage: ...  # type: ignore[override]  # slices are not used

        def __iter__(self) -> Iterator[VisionStage]: ...


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        fill_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
