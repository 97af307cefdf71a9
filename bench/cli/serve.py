"""The report page of a folder that is being written to, on this machine alone, built again as records arrive."""

import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from wallclock import reports
from wallclock.reports.store.write import RECORDS, SAMPLE_TABLE, StoreError

ADDRESS = "127.0.0.1"
# Asks every other second; does not take a page away from someone who is filtering it.
REFRESH = """<script>
(() => {
  const seen = %(version)r;
  setInterval(async () => {
    if ([...document.querySelectorAll("input")].some((input) => input.value)) return;
    try {
      if ((await (await fetch("/version")).text()) !== seen) location.reload();
      document.title = document.title.replace(/^\\[stopped\\] /, "");
    } catch {
      if (!document.title.startsWith("[stopped] ")) document.title = "[stopped] " + document.title;
    }
  }, 2000);
})();
</script>"""
NOTHING_YET = """<!doctype html><html lang="en"><meta charset="utf-8"><title>wallclock</title>
<body style="font: 16px system-ui, sans-serif; margin: 3rem; color-scheme: light dark"><h1>Nothing measured yet</h1>
<p>This page follows the folder, and shows its runs when there are some.</p>"""


class LivePage:
    """The page of some paths, as of their newest record.

    Args:
        paths: run directories, or folders that hold some or will.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._built: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def version(self) -> str:
        """Returns what changes with every record: the number, newest time and total size of the files of all runs."""
        newest, size, count = 0, 0, 0
        for path in self.paths:
            for name in (RECORDS, SAMPLE_TABLE):
                for file in path.rglob(name):
                    try:
                        stat = file.stat()
                    except OSError:  # a run has ended meanwhile, and its lines have become a table
                        continue
                    newest, size, count = max(newest, stat.st_mtime_ns), size + stat.st_size, count + 1
        return f"{count}-{size}-{newest}"

    def html(self) -> str:
        """Returns the page, built again if there is anything new."""
        with self._lock:
            version = self.version()
            if self._built is None or self._built[0] != version:
                self._built = version, self._page() + REFRESH % {"version": version}
            return self._built[1]

    def _page(self) -> str:
        with TemporaryDirectory() as aside:
            out = Path(aside) / "report.html"
            try:
                reports.Report([path for path in self.paths if path.exists()]).page(out)
            except StoreError:
                return NOTHING_YET
            return out.read_text(encoding="utf-8")


def server(page: LivePage, port: int) -> ThreadingHTTPServer:
    """Returns a server of the page, bound to this machine's own address.

    Args:
        page: what is served at `/`; its version is at `/version`.
        port: 0 for any free one.

    Raises:
        ValueError: if the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = {f"{name}:{self.server.server_port}" for name in (ADDRESS, "localhost")}  # type: ignore[attr-defined]
            if self.headers.get("Host") not in own:  # a page elsewhere whose name resolves to this machine
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._answer(page.html(), "text/html; charset=utf-8")
            elif self.path == "/version":
                self._answer(page.version(), "text/plain")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(HTTPStatus.OK)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(content))),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing: a browser asks every other second."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such port"
        raise ValueError(f"cannot serve at port {port}: {why}; choose another with --port, or 0 for any") from None
