"""Downloads: what servers send beside the file is not kept."""

import contextlib
import http.server
import threading
from pathlib import Path

from tokvid.io import download


@contextlib.contextmanager
def serving(handler):
    """The address of a server that answers by it."""
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_no_file_is_begun_once_whoever_wants_it_has_left(tmp_path, monkeypatch):
    """It would stay, where those that were there are cleared away at this moment."""
    left, opened, open_file = threading.Event(), [], Path.open

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            left.set()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"here")

    monkeypatch.setattr(Path, "open", lambda path, *how: opened.append(path) or open_file(path, *how))
    with serving(Handler) as address:
        download._fetch(f"{address}/a", 100, tmp_path, left)
    assert not opened and not list(tmp_path.iterdir())


def test_nothing_is_read_of_an_answer_that_leads_elsewhere():
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(301 if self.path == "/moved" else 200)
            self.send_header("Location", "/here")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100 if self.path == "/moved" else 0):
                    sent.append(self.wfile.write(bytes(1 << 20)))
                self.wfile.write(b"here")

    with serving(Handler) as address, download._opener().open(f"{address}/moved", timeout=20) as answer:
        assert answer.read() == b"here"
    assert sum(sent) < 50 << 20  # of 100 MiB; what the system buffers
