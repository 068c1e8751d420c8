"""The records by which reading is measured are a data set; reading leaves Python's garbage collector as it was."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from benchmarks.reading import SENTENCES, read, write_records
from utils import garbage_uncollected

SHARE = 1000


def test_made_up_records_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records(tmp_path, SHARE)
    read(str(tmp_path))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "reading refcoco (unc)"
    count, seconds, cpu_seconds, gib = map(float, printed[-1].split())
    assert count == SENTENCES // SHARE
    assert min(seconds, cpu_seconds, gib) > 0
    assert gc.isenabled()


def test_the_collector_rests_until_all_splits_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_records(tmp_path, SHARE)
    states: list[bool] = []
    monkeypatch.setattr("data.loaders.log_odd_objects", lambda *_, **__: states.append(gc.isenabled()))
    read(str(tmp_path))
    assert states == [False]
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with garbage_uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
