"""A published folder over HTTP on this machine, with the faults that a server can have."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html><html><body>Sorry, you can't view or download this file at this time.</body></html>"


@dataclass
class Site:
    """Files by path, faults by path, and what was asked for: (path, first byte)."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            path = self.path.removeprefix("/elsewhere")
            fault = site.faults.get(path, "")
            content = site.files.get(path)
            first = int(self.headers.get("Range", "bytes=0-")[6:-1])
            site.asked.append((path, first))
            if content is None:
                return self.send_error(404)
            if fault == "loop" or (fault == "redirect" and not self.path.startswith("/elsewhere")):
                self.send_response(302)
                self.send_header("Location", self.path if fault == "loop" else "/elsewhere" + path)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if fault == "page":
                content = PAGE
            if fault == "deaf":  # to ranges
                first = 0
            if fault == "changed" and first == 0:
                content = content[::-1]
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", '"1"')
            self.end_headers()
            whole = first > 0 and fault == "drop"
            if fault in ("drop", "truncate", "deaf once") and not whole:
                self.wfile.write(content[first : first + (len(content) - first) // 2])
                if fault == "deaf once":
                    site.faults[path] = "deaf"
                self.close_connection = True
                return None
            self.wfile.write(content[first:])
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
