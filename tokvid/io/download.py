"""Files on the web, fetched once into the cache: for lists of addresses, which strangers may have written."""

import contextlib
import hashlib
import http.client
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokvid.errors import UserError
from tokvid.io.threads import map_in_threads
from tokvid.io.urls import cache

TRIES, PAUSE = 3, 1.0  # how often a server that fails is asked, and the seconds before the second time
SILENCE, LONGEST = 30.0, 1800.0  # seconds that a server may say nothing, and that a file may take
PIECE = 1 << 20  # bytes read at once, at most
AT_ONCE = 16  # files
_BEGINNING = threading.Lock()  # no file is begun while whoever leaves clears away those that are there


def download(url: str, most: int) -> Path:
    """A copy of the file at an address, http or https, in the cache folder: fetched once, whole or not at all.

    UserError for a file that is missing, cut off or larger than `most` bytes, and for a server that fails or is slow.
    """
    copy = _place(url)
    if not copy.exists():
        for problem in download_all([url], most):
            if problem:
                raise UserError(problem)
    return copy


def download_all(urls: Sequence[str], most: int) -> Iterator[str]:
    """Downloads all, several at once; yields for each, in their order, why it cannot be had, or "".

    Whoever leaves early, as by Ctrl-C, waits for no server, and nothing stays of files that have arrived in part.
    """
    folder, left = cache() / "files", threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder, ignore_cleanup_errors=True) as partial:
        try:
            # Others are fetched while one in front of them waits for a server.
            yield from map_in_threads(lambda url: _problem(url, most, Path(partial), left), urls, AT_ONCE, ahead=1000)
        finally:
            with _BEGINNING:
                left.set()


def _place(url: str) -> Path:
    return cache() / "files" / hashlib.sha256(url.encode()).hexdigest()[:32]


def _problem(url: str, most: int, partial: Path, left: threading.Event) -> str:
    """Tries to fetch a file into `partial`, then moves it to its place; the reason why it cannot, or ""."""
    for trial in range(1, TRIES + 1):
        if _place(url).exists() or left.is_set():
            break
        try:
            _fetch(url, most, partial, left)
        except UserError as error:
            return str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            status = getattr(error, "code", 500)  # of an HTTPError
            if trial == TRIES or isinstance(error, ValueError) or (status < 500 and status != 429):
                return f"cannot fetch {url!r:.300}: {' '.join(str(error).split()) or type(error).__name__}"
            left.wait(PAUSE * trial)
    return ""


def _fetch(url: str, most: int, partial: Path, left: threading.Event) -> None:
    temporary, deadline = partial / uuid.uuid4().hex, time.monotonic() + LONGEST
    address = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # spaces and foreign letters
    request = urllib.request.Request(address, headers={"User-Agent": "tokvid"})
    try:
        with contextlib.ExitStack() as stack:
            answer = stack.enter_context(_opener().open(request, timeout=SILENCE))
            with _BEGINNING:
                if left.is_set():
                    return
                file = stack.enter_context(temporary.open("wb"))
            announced = answer.headers.get("Content-Length", "")
            size = int(announced) if announced.isascii() and announced.isdecimal() else None
            # `read` would wait for a whole piece, however slowly it arrives.
            while (size or file.tell()) <= most and (piece := answer.read1(PIECE)):
                file.write(piece)
                if left.is_set():
                    return
                if time.monotonic() > deadline:
                    raise UserError(f"cannot fetch {url!r:.300}: it takes more than {LONGEST:.0f} s")
            arrived = file.tell()
        if max(size or 0, arrived) > most:
            raise UserError(f"{url!r:.300} has more than the {most} bytes that are allowed")
        if size not in (None, arrived):
            raise ConnectionError(f"{size} bytes were announced, {arrived} arrived")
        temporary.rename(_place(url))
    finally:
        temporary.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Reads nothing of an answer that leads elsewhere; urllib would read all of it, however long."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Reads http and https alone, also after a redirect; urllib's own opener reads local files and FTP, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
