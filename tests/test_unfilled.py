"""Networks whose weights are replaced at once are built without drawing random ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from CrossVLT import SegModel
from lib.network.unfilled import Unfilled
from lib.variants import FUSIONS


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_random_number_is_drawn(fusion: str) -> None:
    """Whatever memory holds, the loaded network is the same; ones, zeros and indices are made as usual."""
    options: dict[str, Any] = {"fusion": fusion, "align_bias": True, "no_target_head": True, "vocab_size": 50}
    usual = SegModel("nano", "nano", **options)
    before = torch.get_rng_state()
    unfilled = SegModel.unfilled(swin_type="nano", bert_type="nano", **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(unfilled.get_parameter("classifier.bn1_4.weight"), torch.ones(128))
    assert dict(unfilled.named_buffers()).keys() == dict(usual.named_buffers()).keys()
    assert all(torch.equal(one, two) for one, two in zip(unfilled.buffers(), usual.buffers(), strict=True))
    unfilled.load_state_dict(usual.state_dict(), strict=True)
    assert all(torch.equal(one, two) for one, two in zip(unfilled.parameters(), usual.parameters(), strict=True))


def test_other_networks_are_initialised_as_usual() -> None:
    """Also in another thread at the same time, as on the page; and after an error."""

    def weight() -> torch.Tensor:
        network = SegModel("nano", "nano", vocab_size=50)
        return network.get_parameter("lang_stage2.crossattention.self.query.weight")

    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="Swin type"), Unfilled():
        assert 0.01 < threads.submit(weight).result().std() < 0.03
        SegModel("none", "nano")
    assert 0.01 < weight().std() < 0.03
