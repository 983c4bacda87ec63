"""Downloads: what servers send beside the file is not kept."""

import contextlib
import http.server
import threading

from tokvid.io import download


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

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with download._opener().open(f"http://127.0.0.1:{server.server_address[1]}/moved", timeout=20) as answer:
            assert answer.read() == b"here"
    finally:
        server.shutdown()
        server.server_close()
    assert sum(sent) < 50 << 20  # of 100 MiB; what the system buffers
