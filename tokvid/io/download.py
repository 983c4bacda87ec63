"""Files on the web, fetched once into the cache: for lists of addresses, which strangers may have written."""

import hashlib
import http.client
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from tokvid.errors import UserError
from tokvid.io.urls import cache

TRIES, PAUSE = 3, 1.0  # how often a server that fails is asked, and the seconds before the second time
SILENCE, LONGEST = 30.0, 1800.0  # seconds that a server may say nothing, and that a file may take
PIECE = 1 << 20  # bytes read at once


def download(url: str, most: int, stopped: Callable[[], bool] = lambda: False) -> Path:
    """A copy of the file at an address, http or https, in the cache folder: fetched once, whole or not at all.

    UserError for a file that is missing, cut off or larger than `most` bytes, for a server that fails or is slow, and
    where it is `stopped` meanwhile.
    """
    copy = cache() / "files" / hashlib.sha256(url.encode()).hexdigest()[:32]
    for trial in range(1, TRIES + 1):
        if copy.exists():
            break
        try:
            _fetch(url, most, copy, stopped)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            status = getattr(error, "code", 500)  # of an HTTPError
            if trial == TRIES or isinstance(error, ValueError) or (status < 500 and status != 429):
                cause = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"cannot fetch {url!r:.300}: {cause}") from error
            time.sleep(PAUSE * trial)
    return copy


def _fetch(url: str, most: int, copy: Path, stopped: Callable[[], bool]) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    temporary, deadline = copy.with_name(f".{uuid.uuid4().hex}"), time.monotonic() + LONGEST
    address = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # spaces and foreign letters
    request = urllib.request.Request(address, headers={"User-Agent": "tokvid"})
    try:
        with _opener().open(request, timeout=SILENCE) as answer, temporary.open("wb") as file:
            announced = answer.headers.get("Content-Length", "")
            size = int(announced) if announced.isascii() and announced.isdecimal() else None
            while (size or file.tell()) <= most and (piece := answer.read(PIECE)):
                file.write(piece)
                if time.monotonic() > deadline:
                    raise UserError(f"cannot fetch {url!r:.300}: it takes more than {LONGEST:.0f} s")
                if stopped():
                    raise UserError(f"cannot fetch {url!r:.300}: interrupted")
            arrived = file.tell()
        if max(size or 0, arrived) > most:
            raise UserError(f"{url!r:.300} has more than the {most} bytes that are allowed")
        if size not in (None, arrived):
            raise ConnectionError(f"{size} bytes were announced, {arrived} arrived")
        temporary.rename(copy)
    finally:
        temporary.unlink(missing_ok=True)


def _opener() -> urllib.request.OpenerDirector:
    """Reads http and https alone, also after a redirect; urllib's own opener reads local files and FTP, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
