"""The short form of the fault drill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import fault_drill


@pytest.mark.slow  # starts trainings under a launcher and kills them
def test_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    fault_drill.main(["--kills", "1"])
    assert "nothing was lost" in capsys.readouterr().out


def test_the_drill_notices_a_loss(tmp_path: Path) -> None:
    """A comparison that could not fail would prove nothing."""
    one, other = (fault_drill.Run(tmp_path, tmp_path / name, 1, 1) for name in ("one", "other"))
    for run, weight in ((one, 0.0), (other, 1e-7)):
        run.folder.mkdir()
        state = {"model": {"weight": torch.tensor(weight)}, "log": [], "meter": {"rows": []}, "args": {}}
        for name in (fault_drill.LAST, fault_drill.BEST):
            torch.save(state, run.folder / name)
    with pytest.raises(fault_drill.Failed, match=r"undisturbed run in 1 values: \['\.model\.weight'\]"):
        other.must_equal(one)
