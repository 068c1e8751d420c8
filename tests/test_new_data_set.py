"""The example of CONTRIBUTING.md: an entry in the table makes a data set that is read, checked and got."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import train
from errors import UserError
from refer import prepare
from refer.datasets import DATA_SETS, DataSet
from refer.open import open_data_set
from tests import test_grefer as grefer
from tests.commands import blocks

ROOT = Path(__file__).parent.parent


@pytest.fixture
def _droneref(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block for block in blocks((ROOT / "CONTRIBUTING.md").read_text(), "python") if "DataSet(" in block)
    names: dict[str, object] = {}
    exec(code, names)  # as whoever follows the example would write it
    monkeypatch.setitem(DATA_SETS, "droneref", names["entry"])


@pytest.mark.usefixtures("_droneref")
def test_the_example_of_a_new_data_set_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "DroneRef"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "images/a.png")
    Image.fromarray(np.repeat(np.arange(124, 132, dtype=np.uint8)[None], 8, axis=0)).save(folder / "masks/a.png")
    (folder / "output_phrase_val.txt").write_text("a the right half\n")
    index = open_data_set(tmp_path, "droneref", "phrases")
    assert np.array_equal(index.getMask(index.Refs[1])["mask"][0], [0] * 4 + [1] * 4)
    args = train.parse_args(["--dataset", "droneref"])
    assert (args.splitBy, args.max_tokens, args.overlap) == ("phrases", 30, "background")
    with pytest.raises(UserError, match="train has 0 objects"):
        prepare.main(["--dataset", "droneref", "--root", str(tmp_path), "--check", "--workers", "1"])


def test_an_entry_alone_makes_a_set_of_any_number_of_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_SETS, "manyref", DataSet({"unc": ("train", "val", "testA", "testB")}, layout="sets"))
    grefer.write(tmp_path, name="manyref/refs(unc).p")
    index = open_data_set(tmp_path, "manyref", "unc", "object")
    for number, (*_, mask) in grefer.ROWS.items():
        assert np.array_equal(index.getMask(index.Refs[number])["mask"], mask)
