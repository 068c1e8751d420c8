"""Every faster way of evaluating scores the sample test sets as plain float32 does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bert.tokenizer import build_tokenizer
from CrossVLT import SegModel
from data.dataset_refer_bert import ReferDataset
from data.loaders import collate
from data.transforms import PairTransform
from lib.contracts import Batch
from lib.engine import predict
from lib.evaluation.metrics import Metrics
from lib.network.inference import optimize_for_inference
from lib.network.precision import Precision
from lib.variants import PRECISIONS
from predict import SAMPLE_WEIGHTS
from refer.refer import REFER
from tests.training_runs import ROOT
from trained import open_trained

WAYS = [
    *[pytest.param(torch.device("cpu"), name, marks=pytest.mark.slow) for name in ("fp32", "bf16")],
    *[pytest.param(torch.device("cuda"), name, marks=pytest.mark.cuda) for name in PRECISIONS],
]
SIZE = 112  # of the network's training
EVERY = 4  # sentence of a split is enough
SPLITS = ("val", "testA", "testB")


@pytest.fixture(scope="module")
def datasets(sample_root: Path) -> dict[str, ReferDataset]:
    """The splits for validation and tests of the sample data."""
    refer, tokenizer = REFER(sample_root), build_tokenizer(str(sample_root / "vocab.txt"))
    return {split: ReferDataset(refer, split, tokenizer, PairTransform(SIZE)) for split in SPLITS}


@pytest.fixture(scope="module")
def known() -> SegModel:
    """The network in the repository, which finds objects: its logits are far from ties.

    Of seeded weights, whose two logits nearly tie everywhere, bfloat16 turns up to 0.7 % of the pixels over.
    """
    return open_trained(ROOT / SAMPLE_WEIGHTS).network


def batches(dataset: ReferDataset) -> list[Batch]:
    samples = [dataset[index] for index in range(0, len(dataset), EVERY)]
    return [collate(samples[start : start + 16]) for start in range(0, len(samples), 16)]


@pytest.mark.usefixtures("float32_settings")
@pytest.mark.parametrize(("device", "name"), WAYS)
def test_prepared_networks_score_the_test_sets_alike(
    known: SegModel, datasets: dict[str, ReferDataset], device: torch.device, name: str
) -> None:
    exact, fast = Precision("fp32", device), Precision(name, device)
    network = copy.deepcopy(known).to(device)
    prepared = optimize_for_inference(network, fast)
    n_equal = n_pixels = 0
    for split in SPLITS:
        expected, own = Metrics(), Metrics()
        for batch in batches(datasets[split]):
            Precision("fp32", device)  # sets how float32 is computed
            logits = predict(network, batch, device, exact)
            Precision(name, device)
            fast_logits = predict(prepared, batch, device, fast).cpu()
            logits = logits.cpu()
            if name == "fp32":
                torch.testing.assert_close(fast_logits, logits, atol=5e-5 * float(logits.abs().max()), rtol=0)
            n_equal += int((logits.argmax(1) == fast_logits.argmax(1)).sum())
            n_pixels += batch.stacked_target.numel()
            expected.update(logits, batch.target, batch.numbers)
            own.update(fast_logits, batch.target, batch.numbers)
        overall = expected.compute().scores.overall_iou
        assert overall > 70  # it finds the objects
        assert own.compute().scores.overall_iou == pytest.approx(overall, abs=0.2)  # of some 80 sentences
    assert n_equal / n_pixels >= 0.999
