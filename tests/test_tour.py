"""The notebook docs/tour.ipynb runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LITTLE = {"IMAGES = 200": "IMAGES = 8", "N_VALIDATED = 100": "N_VALIDATED = 8", "N_TESTED = 300": "N_TESTED = 8"}


@pytest.mark.slow  # starts a kernel, trains and tests
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer images, in another folder; every picture and table is there."""
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tour = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    nbformat.validate(tour)
    (settings,) = [cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", [])]
    for usual, here in (LITTLE | {'Path("demo/tour")': f"Path({str(tmp_path)!r})"}).items():
        assert usual in settings.source
        settings.source = settings.source.replace(usual, here)
    nbclient.NotebookClient(tour, timeout=300, resources={"metadata": {"path": ROOT / "docs"}}).execute()
    shown = [kind for cell in tour.cells for output in cell.get("outputs", []) for kind in output.get("data", {})]
    assert shown.count("image/png") == 2
    assert shown.count("text/markdown") == 2
    table = tour.cells[-1].outputs[-1].data["text/markdown"]
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| in the repository",
        "| paper's loss",
        "| ce+dice2",
    ]


def test_the_tour_is_kept_without_outputs() -> None:
    """They would be another machine's, and large."""
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
