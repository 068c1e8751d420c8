"""Download files over HTTP from mirrors that may be dead, slow, broken or hostile.

No library for downloads does this: pooch neither resumes a download nor gives up on a very slow server, and urllib3 and
requests repeat a request, but not an interrupted body, so all of the code below would still be needed around them.
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
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")  # names of this machine


class Patience(NamedTuple):
    """Waiting times, and the number of tries."""

    timeout: float = 30.0  # seconds without a byte; after this time, the mean speed must be at least SLOWEST
    tries: int = 3
    pause: float = 2.0  # seconds before the second try; twice as long before each further one


class MirrorError(Exception):
    """A failure of one mirror. passing: another try may succeed."""

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class _TooLongError(MirrorError):
    """A mirror sends more bytes than the file can have."""


def from_mirrors(urls: Iterable[str], fetch: Callable[[str], T], say: Callable[[str], object]) -> T:
    """Return what `fetch` returns for the first URL for which it raises no MirrorError.

    say: called with a line for each failure. Raises MirrorError with all of these lines if every mirror fails.
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
    """Return the content of a URL, at most `limit` bytes. Raises MirrorError if it is unavailable or incomplete."""

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
            # read1 of http.client raises no error for a body that is too short.
            if response.length:
                raise MirrorError(f"the answer ended {response.length} bytes too early", passing=True)
            return bytes(content)

    return _again(attempt, patience)


def fetch_file(url: str, part: Path, limit: int, patience: Patience) -> bool:
    """Download a URL into the file `part`, resuming an interrupted call for the same URL.

    Returns whether the file contains bytes of an earlier response. It may then be a mixture of two versions: check it.
    `part`.json holds the URL, size and version. limit: bytes. Raises MirrorError if the file is unavailable or
    incomplete; the received bytes stay in `part`, unless they exceed `limit`. Raises UserError if it cannot be written.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = False

    def attempt() -> None:
        nonlocal resumed
        start, headers = _rest_of(url, part)
        try:
            response = _open(url, headers, patience)
        except MirrorError:
            # A server that refuses a range may send the whole file.
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
    """Remove a file of `fetch_file` and its `.json`."""
    part.unlink(missing_ok=True)
    _note_of(part).unlink(missing_ok=True)


# ---------------------------------------------------------------- requests


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = newurl.split(":", 1)[0].lower()
        if scheme not in WEB or (req.type == "https" and scheme == "http"):
            raise MirrorError(f"it redirects to {newurl[:200]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Proxies(urllib.request.ProxyHandler):
    """Uses the proxies of the environment, except for addresses of this machine."""

    def proxy_open(self, req: Any, proxy: str, type: str) -> Any:
        return None if urlsplit(req.full_url).hostname in LOCAL_HOSTS else super().proxy_open(req, proxy, type)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for HTTP, HTTPS and proxies, but neither files nor FTP."""
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
    """Call `attempt` until it succeeds. Raises MirrorError for a permanent failure, and after the last try."""
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


# ---------------------------------------------------------------- resuming


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _rest_of(url: str, part: Path) -> tuple[int, dict[str, str]]:
    """Return the first byte to request, and the headers for it; (0, {}) if nothing can be resumed."""
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
    if note.get("size") == size:  # complete, but not yet used: the last byte again, to learn whether the file changed
        headers["Range"] = f"bytes={size - 1}-"
        return size - 1, headers
    return size, headers


def _start_of(response: http.client.HTTPResponse, asked: int, part: Path) -> int:
    """Return the first byte of the response. Raises MirrorError if it is another part than requested."""
    if response.status == 200:
        return 0
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status != 206 or not asked or not content_range or int(content_range[1]) != asked:
        raise MirrorError(f"it answers {response.status} with another part of the file than asked for")
    size = json.loads(_note_of(part).read_bytes()).get("size")
    if size is not None and content_range[2] not in ("*", str(size)):
        discard(part)
        raise MirrorError(f"its file had {size} bytes and now has {content_range[2]}", passing=True)
    return asked


def _receive(
    response: http.client.HTTPResponse, url: str, part: Path, start: int, limit: int, patience: Patience
) -> None:
    """Write the body into the file, beginning at byte `start`."""
    length = response.length
    size = None if length is None else start + length
    _check_length(size, limit)
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and version.startswith("W/"):  # files with the same weak tag may differ in their bytes
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
        raise UserError(f"{part} could not be written ({error}); the bytes received so far are kept") from error
    if size is not None and start < size:
        raise MirrorError(f"the answer ended {size - start} bytes too early", passing=True)


class _Broken(Exception):
    """Carries errors of the network past the handler of file errors: both are OSErrors."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def _chunks(response: http.client.HTTPResponse, patience: Patience) -> Iterable[bytes]:
    """Yield the chunks of a body. Raises MirrorError if it is slower than SLOWEST, which could take days."""
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
