"""`refer.prepare` of the data sets beyond RefCOCO's: from a hub on this machine, or by a message that says how."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from refer import obtain as obtain_module
from refer import prepare
from refer.datasets import DATA_SETS
from refer.obtain import OBTAINED
from refer.open import open_data_set
from tests import test_evaluation_sets as evaluation
from tests import test_lines as lines
from tests import test_rrsisd as rrsisd
from tests.helpers import free_port, naming
from tests.refer_fixture import write_images, write_refer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Data sets as the Hugging Face hub has them: their lists of files, and the files."""

    daemon_threads = True
    files: dict[str, dict[str, bytes]]
    asked: list[str]


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        for name, files in self.server.files.items():
            if path == f"/api/datasets/{name}/tree/main":
                listed = [{"type": "file", "path": file, "size": len(c), "oid": "0" * 40} for file, c in files.items()]
                self.answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
                return
            file = path.removeprefix(f"/datasets/{name}/resolve/main/").removeprefix(
                f"/datasets/{name}/resolve/{COMMIT}/"
            )
            if file in files:
                self.answer(200, files[file], {"ETag": f'"{len(files[file])}"'})
                return
        self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Answer)
    server.files, server.asked = {}, []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    direct(monkeypatch, server.server_port)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    close_session()


def direct(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Do what HF_ENDPOINT would have done before huggingface_hub was imported."""
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    close_session()


def run(root: Path, dataset: str, *flags: str) -> None:
    prepare.main(["--dataset", dataset, "--root", str(root), "--workers", "1", *flags])


# ---------------------------------------------------------------- from the hub


def zipped(folder: Path, inside: str = "", **more: bytes) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, inside + file.relative_to(folder).as_posix())
        for name, extra in more.items():
            archive.writestr(name, extra)
    return content.getvalue()


@pytest.mark.parametrize("inside", ["", "RefSegRS/", "a/b/"])
def test_refsegrs_is_downloaded_unpacked_and_converted(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    source = lines.write_set(tmp_path / "source", "refsegrs")
    hub.files["JessicaYuan/RefSegRS"] = {
        "README.md": b"#",
        "RefSegRS.zip": zipped(source, inside, **{"../no": b"", "x": b""}),
    }
    with naming("RefSegRS.zip", "'../no'"):
        run(tmp_path / "data", "refsegrs")
    (tmp_path / "data/RefSegRS/RefSegRS.zip").unlink()
    hub.files["JessicaYuan/RefSegRS"]["RefSegRS.zip"] = zipped(source, inside, other=b"")
    run(tmp_path / "data", "refsegrs")
    index, same = (open_data_set(tmp_path / name, "refsegrs", "phrases") for name in ("data", "source"))
    assert index.data == same.data
    found = {path.name for path in (tmp_path / "data/RefSegRS").iterdir()}
    assert {"images", "masks", "masks.json", "output_phrase_val.txt"} <= found and "other" not in found
    hub.asked.clear()
    run(tmp_path / "data", "refsegrs")
    assert not hub.asked, "what is there is not downloaded again"


def test_files_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    folder = lines.write_set(tmp_path, "refsegrs")
    (folder / "RefSegRS.zip").write_bytes(zipped(folder))
    for split in ("train", "val", "test"):
        (folder / f"output_phrase_{split}.txt").unlink()
    (folder / "masks/2.tif").write_bytes(b"my own")
    with naming("masks/2.tif", "RefSegRS.zip"):
        run(tmp_path, "refsegrs")
    assert (folder / "masks/2.tif").read_bytes() == b"my own"


def test_names_that_lead_out_of_the_folder_are_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.files["JessicaYuan/RefSegRS"] = {"../a.zip": b"", "/a.zip": b"", "a/../../a.zip": b"", "b\\..\\a.zip": b""}
    with naming(".zip"):
        run(tmp_path / "data", "refsegrs")
    assert not [*tmp_path.rglob("a.zip")]


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no zip", b"<html>"])
def test_invalid_archives_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "RefSegRS").mkdir()
    (tmp_path / "RefSegRS/RefSegRS.zip").write_bytes(content)
    with naming("RefSegRS.zip", "2.97"):
        run(tmp_path, "refsegrs")


@pytest.mark.parametrize("name", [f"output_phrase_{split}.txt" for split in ("train", "val", "test")])
def test_missing_files_of_refsegrs_are_unpacked(tmp_path: Path, name: str) -> None:
    folder = lines.write_set(tmp_path, "refsegrs")
    (folder / "RefSegRS.zip").write_bytes(zipped(folder))
    (folder / name).unlink()
    run(tmp_path, "refsegrs")
    assert (folder / name).is_file()


@pytest.mark.parametrize("n_there", [0, 1])
def test_refcocom_is_downloaded_and_converted(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_there: int
) -> None:
    """So is what an interrupted call left out."""
    monkeypatch.setitem(DATA_SETS["refcocom"].counts, "unc", {"val": (2, 3)})
    write_images(write_refer(tmp_path / "data"))
    if n_there:
        evaluation.write_parquet(tmp_path / "data", evaluation.rows()[:1])
    evaluation.write_parquet(tmp_path / "source", *([row] for row in evaluation.rows()))
    files = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "source").rglob("*.parquet")}
    hub.files["moondream/refcoco-m"] = {"README.md": b"", **files}
    run(tmp_path / "data", "refcocom", "--annotations-only")
    assert len(open_data_set(tmp_path / "data", "refcocom", "unc").Refs) == 2
    hub.asked.clear()
    run(tmp_path / "data", "refcocom", "--annotations-only")
    assert not hub.asked


def test_half_of_refcocom_is_not_taken_as_whole(tmp_path: Path, hub: Hub) -> None:
    evaluation.write_parquet(tmp_path, evaluation.rows())
    with naming("moondream/refcoco-m"):
        run(tmp_path, "refcocom")
    assert not (tmp_path / "refcocom/instances.json").exists()


@pytest.mark.parametrize(
    ("dataset", "where"), [("refsegrs", "JessicaYuan/RefSegRS"), ("refcocom", "moondream/refcoco-m")]
)
def test_without_the_hub_the_error_gives_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, dataset: str, where: str
) -> None:
    """No repository, one without such files, and no server at all: the message says what to do by hand."""
    for files in ({}, {where: {"README.md": b""}}):
        hub.files = files
        with naming(f"https://huggingface.co/datasets/{where}", str(tmp_path / OBTAINED[dataset].files[0])):
            run(tmp_path, dataset)
    direct(monkeypatch, free_port())
    with naming(f"https://huggingface.co/datasets/{where}"):
        run(tmp_path, dataset)


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("dataset", ["rrsisd", "risbench", "grefcoco", "refzom", "arefcoco"])
def test_sources_on_cloud_drives_are_named(tmp_path: Path, dataset: str) -> None:
    """By address, size and target folder."""
    origin = OBTAINED[dataset]
    with naming(origin.address.split()[0], origin.size.split()[-1].rstrip(")"), tmp_path / origin.files[0]):
        run(tmp_path, dataset)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_every_data_set_has_a_source() -> None:
    """RefCOCO's family from mirrors, the others as the table says."""
    assert {*OBTAINED} == {*DATA_SETS} - {"refcoco", "refcoco+", "refcocog", "refclef"}


def test_existing_files_are_converted(tmp_path: Path) -> None:
    folder = lines.write_set(tmp_path, "risbench")
    run(tmp_path, "risbench")
    assert (folder / "masks.json").is_file()


def test_rrsisd_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rrsisd.write_rrsisd(tmp_path)
    run(tmp_path, "rrsisd")
    assert (tmp_path / "rrsisd/refs(unc).json").is_file()
    with naming("train has 3 objects", "12,181"):
        run(tmp_path, "rrsisd", "--check")


def test_arefcoco_needs_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation.write_arefcoco(tmp_path, {"annotations": evaluation.records()})
    with naming("refcoco/refs(unc).p", "refcocog (umd)"):
        run(tmp_path, "arefcoco")
    write_images(write_refer(write_refer(tmp_path), dataset="refcocog", split_by="umd"))
    fetched: list[Any] = []
    monkeypatch.setattr(prepare, "fetch_images", lambda index, *_: fetched.append(index.dataset))
    run(tmp_path, "arefcoco")
    assert fetched == ["arefcoco"]


def test_texts_come_last_out_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the next call completes an interrupted one."""
    source, written = lines.write_set(tmp_path / "source", "refsegrs"), []
    (tmp_path / "a.zip").write_bytes(zipped(source))
    monkeypatch.setattr(obtain_module, "unpack_file", lambda content, name, target: written.append(target.name))
    obtain_module.unpack_lines(tmp_path / "a.zip", tmp_path / "data")
    assert len(written) == 11 and all(name.startswith("output_phrase_") for name in written[-3:])
