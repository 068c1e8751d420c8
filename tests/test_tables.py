"""The tables of README.md and docs/ are what `python -m benchmarks.tables` makes of benchmarks/results/."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import report, tables
from benchmarks.cases import Case
from benchmarks.compare import Row
from benchmarks.gpu.profiling import Interval, summarise
from benchmarks.targets import Results
from benchmarks.variants import PLAIN, Variant
from errors import UserError
from tests.helpers import naming

CARD, BASE = "NVIDIA H100 80GB HBM3", Case("base", 480, 12)


def test_committed_tables_are_those_that_the_command_makes() -> None:
    runs = tables.read_runs(tables.RESULTS)
    found = {}
    for page in tables.pages():
        text = page.read_text(encoding="utf-8")
        assert tables.fill(text, runs) == text, f"{page}: call python -m benchmarks.tables"
        found[page.name] = [match["name"] for match in tables.BLOCK.finditer(text)]
        assert text.count("<!-- table ") == len(found[page.name]), f"{page}: a table has no end"
    assert found["performance.md"] == ["goals", "memory"]
    assert found["gpus.md"] == ["gpu", "gpu-goals"]
    for one in runs:
        if one.results.rates:
            text = (tables.RESULTS / f"{one.name}.md").read_text(encoding="utf-8")
            assert text == report.markdown(one.results), one.name


def row(variant: Variant, seconds: float) -> Row:
    return Row("training", BASE, variant, 10**13, [seconds], rates={"matmul": [1e14], "conv": [1e14]})


def made_up(**settings: object) -> Results:
    """A run on a GPU, in the form of `python -m benchmarks.gpu`."""
    kernels = summarise([Interval("gemm|sm90", 0, 3000), Interval("norm", 4000, 5000)])
    whole = {"script": "train", "workers": 8, "cached": True, "samples_per_second": 99.5, "data_wait": 0.014}
    return Results(
        "cuda",
        {"device": CARD, "driver": "580.1", "cuda": "13.0", "versions": {"torch": "2.14.1"}},
        {"minutes": 8.0, "quick": False, **settings},
        rows=[row(PLAIN, 1.2), row(Variant("bf16"), 0.4), row(Variant("bf16", compiled=True), 0.15)],
        steps=[{"name": "correct", "left_out": [], "seconds": 9.0, "failure": "", "n_tests": 2}],
        tests=[{"test": "a::b", "outcome": "passed", "seconds": 1.0}],
        memory=[{"setting": "bf16", "swin_type": "base", "img_size": 480, "batch_size": 1, "peak_gib": 4.25}],
        whole=[whole | {"seconds": 20.0, "failure": ""}],
        profiles=[{"part": "training", **BASE._asdict(), "variant": "compiled bf16"} | kernels],
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of the pages, and of the results in results/."""
    pages = [Path(shutil.copy(page, tmp_path)) for page in tables.pages()]
    monkeypatch.setattr(tables, "pages", lambda: pages)
    shutil.copytree(tables.RESULTS, tmp_path / "results")
    return tmp_path


def made(place: Path) -> dict[str, str]:
    """Call the command; return the pages by name."""
    tables.main(["--results", str(place / "results")])
    return {page.name: page.read_text(encoding="utf-8") for page in tables.pages()}


def test_a_run_on_a_gpu_fills_its_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made(place)
    assert capsys.readouterr().out == ""
    report.write(made_up(), place / "results" / "gpu-h100-2026-12-01")
    pages = made(place)
    assert {name for name in pages if pages[name] != before[name]} == {"performance.md", "gpus.md"}
    for words in (
        f"| setting | CPU (AMD EPYC with avx512_bf16), GiB | {CARD}, GiB |",
        "| `--precision fp32` | 5.76 | – |",
        "| `--precision bf16` | 5.05 | 4.25 |",
        "| ≥ 6.00× | 8.00× (compiled bf16, batch 12) | reached | `gpu-h100-2026-12-01` |",
    ):
        assert words in pages["performance.md"], words
    for words in (
        f"### {CARD}",
        "PyTorch 2.14.1, CUDA 13.0, driver 580.1. 1 of 2 tests passed. 1 did not end in time.",
        "| case | plain fp32 | eager bf16 | compiled bf16 | share, bf16 |",
        "| training base@480 batch 12 | 100.0 | 33.3 | 12.5 | 67 % |",
        "| train.py | 8 | yes | 99.5 | 1.4 % | 20.0 |",
        "| training base@480 batch 12, compiled bf16 | 5.0 | 1.0 | 2 | 0, 0.0 | gemm/sm90, 75 % |",
        "| ≥ 12.00× | – | unmeasured | – |",
    ):
        assert words in pages["gpus.md"], words
    assert tables.NOTHING not in pages["gpus.md"]


def test_the_newest_run_counts_and_quick_ones_do_not(place: Path) -> None:
    results = place / "results"
    for day, peak in (("2026-12-02", 4.5), ("2026-12-01", 4.25)):
        run = made_up()
        run.memory[0]["peak_gib"] = peak
        report.write(run, results / f"gpu-h100-{day}")
    quick = made_up(quick=True)
    quick.memory[0]["peak_gib"] = 0.1
    report.write(quick, results / "gpu-h100-2026-12-03")
    assert "| `--precision bf16` | 5.05 | 4.50 |" in made(place)["performance.md"]


def test_missing_values_are_named(place: Path) -> None:
    with pytest.raises(UserError, match="table speed --> is unknown: there are memory, goals"):
        tables.fill("<!-- table speed -->\n<!-- end speed -->", [])
    (place / "results" / "broken.json").write_text('{"rows": []}')
    with pytest.raises(UserError, match=r"broken\.json is no result"):
        made(place)


def test_without_results_the_pages_stay(place: Path) -> None:
    before = made(place)
    shutil.rmtree(place / "results")
    with naming("--results", place / "results"):
        made(place)
    assert {page.name: page.read_text(encoding="utf-8") for page in tables.pages()} == before
