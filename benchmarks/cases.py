"""Networks and batches for the benchmarks: random, but the same in every process."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from CrossVLT import SegModel
from lib.contracts import Batch
from lib.variants import BERT_VARIANTS, MAX_TOKENS

VOCABULARY = 1000  # size of the vocabulary of random batches
SEED = 0


class Case(NamedTuple):
    """The workload; the variants that are compared on it define how it is computed."""

    swin_type: str
    img_size: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.swin_type}@{self.img_size} batch {self.batch_size}"


def build_network(swin_type: str, device: torch.device) -> SegModel:
    """Return a network of this type, without dropout and drop path, with weights from `randomise`."""
    torch.manual_seed(SEED)
    bert_type = swin_type if swin_type in BERT_VARIANTS else "base"
    with device:  # a GPU draws its 240 million numbers faster
        network = SegModel(swin_type, bert_type, dropout=0.0, drop_path=0.0)
        randomise(network)
    return network


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Set every weight to a random value as in a trained network, in place.

    Initial weights would hide mistakes: their biases are zero, their norms and running statistics change nothing, and
    their logits are nearly the same everywhere.
    """
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name == "temp":
            continue
        fan_in = math.prod(value.shape[1:])
        if name.endswith("running_var"):
            value.uniform_(1.0, 2.0)
        elif value.dim() == 1 and name.endswith("weight"):  # of a normalisation
            value.uniform_(0.8, 1.2)
        elif value.dim() == 1:
            value.normal_(std=0.1)
        else:
            value.normal_(std=math.sqrt(2 / fan_in) if "classifier" in name else 1 / math.sqrt(fan_in))
    # Balance the classes: otherwise all pixels would get one class, and agreement would mean nothing.
    weight, bias = (network.get_parameter(f"classifier.conv1_1.{name}") for name in ("weight", "bias"))
    weight.sub_(weight.mean(dim=1, keepdim=True))
    bias.zero_()


def random_batch(img_size: int, batch_size: int, device: torch.device, seed: int = SEED) -> Batch:
    """Return a batch like those of the data set: sentences of different lengths, and rectangles as objects."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch_size, 3, img_size, img_size, generator=generator)
    token_ids = torch.randint(VOCABULARY, (batch_size, MAX_TOKENS), generator=generator)
    lengths = torch.randint(4, MAX_TOKENS + 1, (batch_size, 1), generator=generator)
    attention_mask = (torch.arange(MAX_TOKENS) < lengths).long()
    target = torch.zeros(batch_size, img_size, img_size, dtype=torch.int64)
    target[:, img_size // 4 : img_size // 2, img_size // 3 : 3 * img_size // 4] = 1
    fields = (image, token_ids * attention_mask, attention_mask, target, torch.arange(batch_size))
    return Batch(*(field.to(device) for field in fields))
