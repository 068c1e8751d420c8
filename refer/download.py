"""Fetching files over HTTP from mirrors that may be dead, slow, broken or hostile.

No library for downloads does this: pooch neither goes on after a break nor gives up on a server that only drips, and
urllib3 and requests repeat a request, but not a body that broke off, so that all below would be needed around them.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from errors import UserError

T = TypeVar("T")
CHUNK = 1 << 16
SLOWEST = 1000  # bytes a second
AGENT = "refer.prepare (CrossVLT)"
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
WEB = ("http", "https")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # this machine, as addresses name it


class Patience(NamedTuple):
    """How long to wait for a server, and how often to ask."""

    timeout: float = 30.0  # seconds without a byte, and after which an answer must have come at SLOWEST or faster
    tries: int = 3
    pause: float = 2.0  # seconds before the second try; twice as long before each further one


class MirrorError(Exception):
    """What one mirror did wrong. passing: it may do better when asked again."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class _TooLongError(MirrorError):
    """It sends more than the file can have."""


def from_mirrors(urls: Iterable[str], fetch: Callable[[str], T], say: Callable[[str], object]) -> T:
    """Return what `fetch` returns for the first URL for which it raises no MirrorError.

    say: called with a line for each that fails. Raises MirrorError with all of these lines where none is left.
    """
    lines = []
    for url in urls:
        try:
            return fetch(url)
        except MirrorError as error:
            lines.append(f"{url}: {error}")
            say(lines[-1])
    raise MirrorError("\n".join(f"  {line}" for line in lines))


def fetch_bytes(url: str, limit: int, patience: Patience) -> bytes:
    """Return what lies at a URL, at most `limit` bytes; MirrorError where it does not come, or not whole."""

    def attempt() -> bytes:
        with _open(url, {}, patience) as response:
            _check_length(response.length, limit)
            content = bytearray()
            try:
                for chunk in _chunks(response, patience):
                    content += chunk
                    _check_length(len(content), limit)
            except _Broken as error:
                raise error.reason from None
            # In chunks, http.client returns a short body without a word.
            if response.length:
                raise MirrorError(f"the answer ended {response.length} bytes too early", passing=True)
            return bytes(content)

    return _again(attempt, patience)


def fetch_file(url: str, part: Path, limit: int, patience: Patience) -> bool:
    """Bring what lies at a URL into the file `part`, going on where an earlier call for the same URL broke off.

    Returns whether bytes of an earlier answer are in the file, which may then be a mixture of two: check it. What the
    server said about the file is kept beside it, in `part`.json. limit: bytes. Raises MirrorError where the file does
    not come, or not whole; what came stays in `part`, unless it was more than `limit`. UserError where it cannot be
    written.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = False

    def attempt() -> None:
        nonlocal resumed
        start, headers = _rest_of(url, part)
        try:
            response = _open(url, headers, patience)
        except MirrorError:
            # A server that refuses the rest may give the whole.
            if not start:
                raise
            response, start = _open(url, {}, patience), 0
        with response:
            start = _start_of(response, start, part)
            resumed = resumed or start > 0
            _receive(response, url, part, start, limit, patience)

    try:
        _again(attempt, patience)
    except _TooLongError:
        discard(part)
        raise
    return resumed


def discard(part: Path) -> None:
    """Remove a file of `fetch_file` and what is kept beside it."""
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


# ---------------------------------------------------------------- asking


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to other web addresses only, and never from an encrypted to an open one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = newurl.split(":", 1)[0].lower()
        if scheme not in WEB or (req.type == "https" and scheme == "http"):
            raise MirrorError(f"it redirects to {newurl[:200]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Proxies(urllib.request.ProxyHandler):
    """Goes through the proxies of the environment, but never from this machine to itself."""

    def proxy_open(self, req: Any, proxy: str, type: str) -> Any:
        return None if urlsplit(req.full_url).hostname in LOCAL_HOSTS else super().proxy_open(req, proxy, type)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows the web and proxies, but neither files nor FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        _Proxies,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _WebOnly,
    ):
        opener.add_handler(handler())
    return opener


def _open(url: str, headers: dict[str, str], patience: Patience) -> http.client.HTTPResponse:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept-Encoding": "identity", **headers})
        answer: http.client.HTTPResponse = _opener().open(request, timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise MirrorError(f"it answers {error.code} {error.reason}", error.code in WORTH_ANOTHER_TRY) from None
    return answer


def _again(attempt: Callable[[], T], patience: Patience) -> T:
    """Call `attempt` until it succeeds or is not worth another try; every trouble leaves as MirrorError."""
    pause = patience.pause
    for left in reversed(range(patience.tries)):
        try:
            return attempt()
        except MirrorError as error:
            if not left or not error.passing:
                raise
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
            if not left or isinstance(error, ValueError):
                raise MirrorError(_reason(error)) from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("at least one try")


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"the answer ended {error.expected} bytes too early"
    cause = getattr(error, "reason", error)
    return "it does not answer in time" if isinstance(cause, TimeoutError) else f"{cause or type(error).__name__}"


def _check_length(length: int | None, limit: int) -> None:
    if length is not None and length > limit:
        raise _TooLongError(f"it sends more than {limit:,} bytes, too many for this file")


# ---------------------------------------------------------------- going on


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _rest_of(url: str, part: Path) -> tuple[int, dict[str, str]]:
    """Return from which byte on to ask, and the headers that ask for it; (0, {}) without a usable beginning."""
    try:
        note = json.loads(_note_of(part).read_bytes())
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, {}
    if not isinstance(note, dict) or note.get("url") != url or not size:
        return 0, {}
    headers = {"Range": f"bytes={size}-"}
    if isinstance(note.get("version"), str):
        headers["If-Range"] = note["version"]
    if note.get("size") == size:  # complete, but not yet taken: the last byte again, which says whether it still fits
        headers["Range"] = f"bytes={size - 1}-"
        return size - 1, headers
    return size, headers


def _start_of(response: http.client.HTTPResponse, asked: int, part: Path) -> int:
    """Return at which byte the answer starts; MirrorError where the server sends another part than asked."""
    if response.status == 200:
        return 0
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status != 206 or not asked or not found or int(found[1]) != asked:
        raise MirrorError(f"it answers {response.status} with another part of the file than asked for")
    size = json.loads(_note_of(part).read_bytes()).get("size")
    if size is not None and found[2] not in ("*", str(size)):
        discard(part)
        raise MirrorError(f"its file had {size} bytes and now has {found[2]}", passing=True)
    return asked


def _receive(
    response: http.client.HTTPResponse, url: str, part: Path, start: int, limit: int, patience: Patience
) -> None:
    """Write the body into the file from byte `start` on."""
    length = response.length
    size = None if length is None else start + length
    _check_length(size, limit)
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and version.startswith("W/"):  # two files that a weak tag calls equal may differ in their bytes
        version = None
    try:
        note = json.dumps({"url": url, "version": version, "size": size}).encode()
        with part.open("r+b" if start else "wb") as file:
            file.truncate(start)
            file.seek(start)
            _note_of(part).write_bytes(note)
            for chunk in _chunks(response, patience):
                start += len(chunk)
                _check_length(start, limit)
                file.write(chunk)
    except _Broken as error:
        raise error.reason from None
    except OSError as error:
        raise UserError(f"{part} could not be written ({error}); what came is kept") from error
    if size is not None and start < size:
        raise MirrorError(f"the answer ended {size - start} bytes too early", passing=True)


class _Broken(Exception):
    """Carries the network's errors past the file's, which are OSErrors as well."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def _chunks(response: http.client.HTTPResponse, patience: Patience) -> Iterable[bytes]:
    """Yield a body as it comes; MirrorError where it only drips, which would keep every call waiting for days."""
    begin, size = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(error) from error
        if not chunk:
            return
        size += len(chunk)
        if (spent := time.monotonic() - begin) > patience.timeout and size < SLOWEST * spent:
            raise MirrorError(f"it sends less than {SLOWEST:,} bytes a second")
        yield chunk
