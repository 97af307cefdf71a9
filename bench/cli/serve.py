"""A local server for the report page of a folder whose runs are still being written."""

import contextlib
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from wallclock import reports
from wallclock.reports.store.layout import RECORDS, SAMPLE_TABLE, StoreError

ADDRESS = "127.0.0.1"
# Asks for the version every 2 s and reloads the page when it changes, except while a filter of the page is in use.
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
    """The report page of runs, or of folders that hold or will hold some, up to date with their newest record."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._built: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def version(self) -> str:
        """Returns a text that changes with every record: number, total size and newest time of the runs' files."""
        stats = []
        for file in (file for path in self.paths for name in (RECORDS, SAMPLE_TABLE) for file in path.rglob(name)):
            with contextlib.suppress(OSError):  # a run that ends replaces its lines by a table
                stats.append(file.stat())
        newest = max((stat.st_mtime_ns for stat in stats), default=0)
        return f"{len(stats)}-{sum(stat.st_size for stat in stats)}-{newest}"

    def html(self) -> str:
        """Returns the page as HTML, built again if there is a new record."""
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
    """Returns a server of the page at `/`, and of its version at `/version`, bound to this machine's loopback address.

    Port 0 is any free one.

    Raises:
        ValueError: if the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            own = {f"{name}:{self.server.server_port}" for name in (ADDRESS, "localhost")}  # type: ignore[attr-defined]
            if self.headers.get("Host") not in own:  # rejects a foreign page whose host name resolves to this machine
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
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Discards the log message: a browser sends a request every 2 s."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such port"
        raise ValueError(f"cannot serve at port {port}: {why}; choose another with --port, or 0 for any") from None
