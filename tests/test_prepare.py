"""Fetching, unpacking, converting and checking a data set, from a server that may do anything."""

from __future__ import annotations

import io
import pickle
import shutil
import socket
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from errors import UserError, run
from lib.files import alone_in
from refer import prepare
from refer.check import check_dataset
from refer.download import MirrorError, Patience, fetch_bytes, fetch_file
from refer.files import read_refs
from refer.refer import REFER
from tests.helpers import naming
from tests.refer_fixture import python2_pickle, tiny_refs, write_refer

QUICK = Patience(timeout=0.5, tries=2, pause=0.01)
TAG = '"version 1"'


class Server:
    """Answers from `files`, path → content, or as the function under `tricks` does; remembers the Range asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tricks: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.ranges: list[str | None] = []
        self.asked: list[str] = []
        self.tag, self.honours_ranges = TAG, True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.ranges.append(self.headers.get("Range"))
                outer.tricks.get(self.path.rsplit("/", 1)[0] or self.path, outer.answer)(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        content = self.files.get(request.path)
        if content is None:
            request.send_error(404)
            return
        asked = request.headers.get("Range")
        fits = request.headers.get("If-Range", self.tag) == self.tag
        start = int(asked[len("bytes=") : -1]) if asked and fits and self.honours_ranges else 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("ETag", self.tag)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start:])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and no other mirror."""
    monkeypatch.setattr(prepare, "MIRRORS", {"annotations": (), "images": ()})
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def headers(request: BaseHTTPRequestHandler, length: int) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(length))
    request.end_headers()


def broken(request: BaseHTTPRequestHandler) -> None:
    request.send_error(500)


def reset(request: BaseHTTPRequestHandler) -> None:
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()


def stall(request: BaseHTTPRequestHandler) -> None:
    headers(request, 1000)
    request.wfile.flush()
    threading.Event().wait(1.0)


def truncated(request: BaseHTTPRequestHandler) -> None:
    headers(request, 1000)
    request.wfile.write(b"x" * 10)


def drip(request: BaseHTTPRequestHandler) -> None:
    headers(request, 1000)
    with suppress(OSError):
        for _ in range(100):
            request.wfile.write(b"x")
            request.wfile.flush()
            threading.Event().wait(0.02)


def to_ftp(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "ftp://127.0.0.1/a")
    request.end_headers()


def to_file(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "file:///etc/hostname")
    request.end_headers()


TRICKS = {
    broken: "500",
    reset: "reset|aborted|closed|without response|Bad file",
    stall: "in time|timed out",
    truncated: "too early",
    drip: "bytes a second",
    to_ftp: "not followed",
    to_file: "not allowed",
}


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_failures_are_named_and_leave_nothing(server: Server, tmp_path: Path, trick: Callable) -> None:
    server.tricks["/bad"] = trick
    with pytest.raises(MirrorError, match=TRICKS[trick]):
        fetch_bytes(f"{server.url}/bad/a", 10_000, QUICK)
    with pytest.raises(MirrorError, match=TRICKS[trick]):
        fetch_file(f"{server.url}/bad/a", tmp_path / "a.part", 10_000, QUICK)


def test_local_files_are_no_mirrors(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"secret")
    with pytest.raises(MirrorError):
        fetch_bytes(f"file://{tmp_path}/a", 100, QUICK)


def test_too_much_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = bytes(1000)
    with naming(999, kind=MirrorError):
        fetch_bytes(f"{server.url}/a", 999, QUICK)
    with naming(999, kind=MirrorError):
        fetch_file(f"{server.url}/a", tmp_path / "a.part", 999, QUICK)


@pytest.mark.parametrize("way", ["honoured", "ignored", "changed"])
def test_a_broken_download_is_resumed(server: Server, tmp_path: Path, way: str) -> None:
    content, part, url = bytes(range(256)) * 20, tmp_path / "a.part", f"{server.url}/cut/a"

    def cut(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("ETag", TAG)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:1000])

    server.tricks["/cut"] = cut
    with pytest.raises(MirrorError, match="too early"):
        fetch_file(url, part, 10_000, QUICK._replace(tries=1))
    assert part.read_bytes() == content[:1000]

    server.tricks.clear()
    server.honours_ranges = way != "ignored"
    if way == "changed":
        server.tag, content = '"version 2"', content[::-1]
    server.files["/cut/a"] = content
    assert fetch_file(url, part, 10_000, QUICK) == (way == "honoured")
    assert part.read_bytes() == content
    assert server.ranges[-1] == "bytes=1000-"


def test_without_a_version_another_size_starts_anew(server: Server, tmp_path: Path) -> None:
    part, url = tmp_path / "a.part", f"{server.url}/a"
    server.tag = "W/weak"
    server.files["/a"] = b"a" * 100
    fetch_file(url, part, 1000, QUICK)
    part.write_bytes(b"a" * 50)
    server.files["/a"] = b"b" * 99
    fetch_file(url, part, 1000, QUICK)
    assert part.read_bytes() == b"b" * 99
    assert server.ranges == [None, "bytes=50-", None]


# ---------------------------------------------------------------- archives


def archive_of(root: Path, dataset: str, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for path in sorted((root / dataset).iterdir()):
            archive.write(path, f"{dataset}/{path.name}")
    return content.getvalue()


def added(content: bytes, name: str, data: bytes = b"x", mode: int = 0o100644) -> bytes:
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        archive.writestr(entry, data)
    return buffer.getvalue()


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("TRAP",))


@pytest.mark.parametrize("name", ["climbs", "absolute", "link", "device", "bomb", "code", "page", "cut", "other"])
def test_hostile_archives_leave_nothing(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture, name: str
) -> None:
    good = archive_of(write_refer(tmp_path / "source"), "refcoco")
    coded = archive_of(write_refer(tmp_path / "coded", pickle.dumps([Trap()])), "refcoco")
    contents = {
        "climbs": (added(good, "../evil"), "leads out"),
        "absolute": (added(good, "/tmp/evil"), "leads out"),
        "link": (added(good, "refcoco/link", b"/etc", 0o120777), "a link or a device"),
        "device": (added(good, "refcoco/null", b"", 0o020666), "a link or a device"),
        "bomb": (added(good, "refcoco/zeros", bytes(3_000_000)), "zip bomb"),
        "code": (coded, "only plain data"),
        "page": (b"<html>not found</html>", "not a valid zip"),
        "cut": (good[: len(good) // 2], "not a valid zip"),
        "other": (archive_of(write_refer(tmp_path / "o", dataset="refcoco+"), "refcoco+"), "has no refcoco/"),
    }
    content, message = contents[name]
    server.files["/refcoco.zip"] = content
    root = tmp_path / "new"
    root.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        prepare.download_annotations(root, "refcoco", "unc", [server.url], QUICK)
    assert str(root / "refcoco") in str(caught.value), "where to put the files by hand"
    assert not list(root.iterdir())
    assert not (tmp_path / "evil").exists()
    assert "\nTRAP" not in capfd.readouterr().out


def test_the_next_mirror_is_asked_and_good_files_stay(server: Server, tmp_path: Path) -> None:
    server.tricks["/bad"] = broken
    source = write_refer(tmp_path / "source")
    server.files["/good/refcoco.zip"] = archive_of(source, "refcoco")
    root = tmp_path / "new"
    (root / "refcoco").mkdir(parents=True)
    kept = root / "refcoco/instances.json"
    kept.write_text((source / "refcoco/instances.json").read_text() + "\n")
    before = kept.stat()
    (root / "refcoco/refs(unc).p").write_bytes(b"damaged")
    refer = prepare.download_annotations(root, "refcoco", "unc", [f"{server.url}/bad", f"{server.url}/good"], QUICK)
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert (root / "refcoco/refs(unc).p.damaged").read_bytes() == b"damaged"
    assert refer.data["refs"] == tiny_refs()
    assert not list(root.glob(".*"))


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("way", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_a_damaged_archive_of_any_compression_leads_to_the_next_mirror(
    server: Server, tmp_path: Path, way: str, place: float
) -> None:
    """And a later call is not held up by what came of it."""
    good = archive_of(write_refer(tmp_path / "source"), "refcoco", getattr(zipfile, f"ZIP_{way}"))
    at = int(place * len(good))
    server.files = {"/bad/refcoco.zip": good[:at] + bytes(40) + good[at + 40 :], "/good/refcoco.zip": good}
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="by hand"):
        prepare.download_annotations(tmp_path / "new", "refcoco", "unc", [f"{server.url}/bad"], QUICK)
    assert not list((tmp_path / "new").iterdir())
    mirrors = [f"{server.url}/bad", f"{server.url}/good"]
    assert prepare.download_annotations(tmp_path / "new", "refcoco", "unc", mirrors, QUICK).data["refs"] == tiny_refs()


def test_an_answer_without_end_is_cut_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        with suppress(OSError):
            while True:
                request.wfile.write(b"x" * 10_000)

    server.tricks["/bad"] = endless
    monkeypatch.setattr(prepare, "MAX_ARCHIVE", 100_000)
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="more than 100,000 bytes"):
        prepare.download_annotations(tmp_path / "new", "refcoco", "unc", [f"{server.url}/bad"], QUICK)
    assert not list((tmp_path / "new").iterdir())


def test_several_calls_at_once_take_turns(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    server.files["/refcoco.zip"] = archive_of(write_refer(tmp_path / "source"), "refcoco")
    root = tmp_path / "new"
    root.mkdir()
    call = partial(prepare.download_annotations, root, "refcoco", "unc", [server.url], QUICK)
    with ThreadPoolExecutor(3) as pool:
        with alone_in(root, lambda: None):
            calls = [pool.submit(call) for _ in range(3)]
            assert not wait(calls, timeout=0.3).done
            assert not server.asked
        assert all(one.result(30).data["refs"] == tiny_refs() for one in calls)
    assert server.asked == ["/refcoco.zip"]
    assert capfd.readouterr().out.count("waiting for it") == 3
    assert [path.name for path in root.iterdir()] == ["refcoco"]


def test_a_good_file_that_another_call_brought_is_not_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"good")
    prepare._put(tmp_path / "a", lambda file: file.write(b"as good"), is_good=lambda: True)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"as good")]


def test_control_characters_of_servers_are_not_printed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    server.tricks["/bad"] = lambda request: request.send_error(404, "\x1b[31mno\x07")
    flags = ["--refer_data_root", str(tmp_path), "--mirror", f"{server.url}/bad"]
    with pytest.raises(SystemExit) as ended:
        run(lambda: prepare.main(flags))
    for text in (capsys.readouterr().out, str(ended.value)):
        assert "404 \\x1b[31mno\\x07" in text
        assert not set("\x1b\x07") & set(text)


def test_no_proxy_is_asked_for_this_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a"] = b"content"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch_bytes(f"{server.url}/a", 100, QUICK) == b"content"
    with pytest.raises(MirrorError, match="refused"):
        fetch_bytes("http://example.invalid/a", 100, QUICK)


def test_json_follows_its_pickle(tmp_path: Path) -> None:
    path = write_refer(tmp_path) / "refcoco/refs(unc).p"
    prepare._write_json_copy(path)
    copy = path.with_suffix(".json")
    copy.write_text(copy.read_text().replace("the red car", "the blue car"))
    assert read_refs(path)[0]["sentences"][0]["raw"] == "the blue car"  # it is the JSON that is read
    path.write_bytes(python2_pickle(tiny_refs()[:2]))
    assert read_refs(path) == tiny_refs()[:2]
    copy.write_text("{")
    assert read_refs(path) == tiny_refs()[:2]
    prepare._write_json_copy(path)
    path.unlink()
    assert read_refs(path) == tiny_refs()[:2]


def test_a_mixture_of_two_answers_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    content = archive_of(write_refer(tmp_path / "source"), "refcoco")
    server.files["/refcoco.zip"] = content
    root, url = tmp_path / "new", f"{server.url}/refcoco.zip"
    part = root / ".refcoco.zip.part"
    fetch_file(url, part, 1 << 20, QUICK)
    part.write_bytes(bytes(len(content) // 2))
    prepare.download_annotations(root, "refcoco", "unc", [server.url], QUICK)
    assert server.ranges == [None, f"bytes={len(content) // 2}-", None]
    assert read_refs(root / "refcoco/refs(unc).p") == tiny_refs()


# ---------------------------------------------------------------- all of it


def test_a_complete_run(server: Server, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "Patience", lambda timeout: QUICK)
    server.files["/refcoco+.zip"] = archive_of(sample_root, "refcoco+")
    images = sorted((sample_root / "images/mscoco/images/train2014").iterdir())
    server.files |= {f"/images/{path.name}": path.read_bytes() for path in images}
    root = tmp_path / "new"
    get = ["--dataset", "refcoco+", "--root", str(root), "--workers", "2"]
    get += ["--mirror", server.url, "--image-mirror", f"{server.url}/images"]

    first = f"/images/{images[0].name}"
    server.files[first] = images[0].read_bytes()[:-100] + b"?"
    with pytest.raises(UserError, match=rf"1 [\s\S]*{images[0].name}: .*JPEG"):
        prepare.main(get)
    server.files[first] = images[0].read_bytes()
    server.asked.clear()
    prepare.main(get)
    assert server.asked == [first]  # nothing comes twice

    look = ["--dataset", "refcoco+", "--root", str(root), "--check", "--workers", "1"]
    with pytest.raises(UserError, match=r"train .* 42,278 .*120,191"):
        prepare.main(look)
    shutil.copy(sample_root / "sample.json", root)
    prepare.main(look)
    prepare.main([*look[:-1], "2"])
    folder = root / "images/mscoco/images/train2014"
    (folder / images[1].name).write_bytes(images[1].read_bytes()[:500])
    (folder / images[2].name).unlink()
    shutil.copy(images[4], folder / images[3].name)
    refer = REFER(root, "refcoco+", "unc")
    refer.refToAnn[refer.imgToRefs[5][0]["ref_id"]]["segmentation"] = [[float("nan")] * 6]
    problems = "\n".join(check_dataset(refer, 1))
    for image, problem in ((1, "cannot be read"), (2, "is missing"), (4, "has no mask")):
        assert f"{images[image].name}: " in problems and problem in problems
    assert len(problems.splitlines()) in (3, 4)  # two scenes may be of one size


def test_dead_image_mirrors_end_the_run(server: Server, sample_root: Path, tmp_path: Path) -> None:
    server.files["/refcoco.zip"] = archive_of(sample_root, "refcoco")
    refer = prepare.download_annotations(tmp_path, "refcoco", "unc", [server.url], QUICK)
    with pytest.raises(UserError, match=r"images could not be downloaded[\s\S]*404[\s\S]*and \d+ more[\s\S]*by hand"):
        prepare.fetch_images(refer, [server.url], 2, QUICK)
