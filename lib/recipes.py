"""Named recipes: what `train.py --recipe` sets unless a flag says otherwise. Plain data.

paper: the paper's, which are the defaults of all flags.
carisv: the paper's network and losses with the schedule of CARIS (Liu et al., ACM MM 2023).
strong: the same with dice over both classes, weighted as in RMSIN (arXiv 2312.12470), and MaskRIS (arXiv 2411.19067).
"""

from __future__ import annotations

from typing import Any

_CARISV: dict[str, Any] = {
    "epochs": 50,
    "lr": 1e-4,
    "encoder_lr_scale": 0.1,
    "warmup": 1500,
    "clip_grad": 1.0,
    "train_embeddings": True,
}
_STRONG = _CARISV | {"loss": "ce+dice2", "dice_weight": 0.1, "mask_image": 0.75, "mask_text": 0.15}
# Values of options, by recipe.
RECIPES: dict[str, dict[str, Any]] = {"paper": {}, "carisv": _CARISV, "strong": _STRONG}
# Every option that a recipe sets.
SET_BY_RECIPES = tuple(_STRONG)
