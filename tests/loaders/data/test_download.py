"""Downloads from a server on this machine: whole, resumed, checked, and failing with a next step."""

import hashlib
import io
import random
import socket
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.download import fetch, fetch_cifar10, fetch_horse2zebra

CONTENT = random.Random(0).randbytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at any path but /missing, and remembers what it was asked for and what it sent."""

    content = CONTENT
    resumes = True
    cut_after: int | None = None  # bytes of the first answer
    garbage: bytes | None = None  # in place of an answer
    chunked = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.sent: list[int] = []

    def url(self, path: str = "/set.tar.gz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if self.server.garbage is not None:
            self.wfile.write(self.server.garbage)
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.resumes else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut_after is not None:
            body, self.server.cut_after = body[: self.server.cut_after], None
        self.wfile.write(b"%x\r\n" % len(self.server.content) + body if self.server.chunked else body)
        self.server.sent.append(len(body))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ignored(done: int, total: int | None) -> None:
    pass


def test_a_whole_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "folder" / "set.tar.gz"
    assert fetch(server.url(), target, MD5, lambda done, total: told.append((done, total))) == target
    assert target.read_bytes() == CONTENT and [p.name for p in target.parent.iterdir()] == ["set.tar.gz"]
    assert told == sorted(told) and told[-1] == (3_000_000, 3_000_000) and len(told) >= 3
    fetch(server.url(), target, MD5, ignored)
    assert server.ranges == [None], "the second call found it there"


def test_a_cut_download_is_resumed_and_only_the_rest_is_sent(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1_234_567
    target = tmp_path / "set.tar.gz"
    with pytest.raises(DataError, match=r"cannot fetch http.*1,234,567 of 3,000,000 bytes.*run the command again"):
        fetch(server.url(), target, MD5, ignored)
    assert not target.exists() and (tmp_path / "set.tar.gz.part").stat().st_size == 1_234_567
    told: list[tuple[int, int | None]] = []
    fetch(server.url(), target, MD5, lambda done, total: told.append((done, total)))
    assert server.ranges == [None, "bytes=1234567-"] and server.sent == [1_234_567, 3_000_000 - 1_234_567]
    assert target.read_bytes() == CONTENT and told[0][0] > 1_234_567 and told[-1] == (3_000_000, 3_000_000)


def test_a_server_that_does_not_resume_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.resumes = False
    target = tmp_path / "set.tar.gz"
    (tmp_path / "set.tar.gz.part").write_bytes(b"0" * 1000)
    fetch(server.url(), target, MD5, ignored)
    assert server.ranges == ["bytes=1000-"] and server.sent == [3_000_000] and target.read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT)
    assert fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored).read_bytes() == CONTENT
    assert server.sent == []


@pytest.mark.parametrize("kept", [b"", b"of another file", CONTENT + b"more"])
def test_another_content_than_the_published_one_is_deleted(server: Server, tmp_path: Path, kept: bytes) -> None:
    server.content = CONTENT if kept else b"<html>moved</html>"
    if kept:
        (tmp_path / "set.tar.gz.part").write_bytes(kept)
    with pytest.raises(DataError, match="another content than the published one; it was deleted, try again"):
        fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored)
    assert list(tmp_path.iterdir()) == []
    server.content = CONTENT
    assert fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored).read_bytes() == CONTENT


def test_a_damaged_target_is_replaced(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    target.write_bytes(CONTENT[:-1])
    assert fetch(server.url(), target, MD5, ignored).read_bytes() == CONTENT


def test_a_missing_page_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/missing answered 404 Not Found; try again later, or another --url"):
        fetch(server.url("/missing"), tmp_path / "set.tar.gz", MD5, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, never listening
        taken.bind(("127.0.0.1", 0))
        (tmp_path / "set.tar.gz.part").write_bytes(b"1234")
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(DataError, match=r"cannot fetch .*refused.*; 4 bytes are kept, run the command again"):
            fetch(url, tmp_path / "set.tar.gz", MD5, ignored)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == b"1234"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 2xx OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX"])
def test_an_answer_that_is_no_http_is_refused(server: Server, tmp_path: Path, answer: bytes) -> None:
    server.garbage = answer
    with pytest.raises(DataError, match="run the command again|another content"):
        fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored)
    assert not (tmp_path / "set.tar.gz").exists()


def test_a_chunked_answer_that_breaks_off_is_kept_and_resumed(server: Server, tmp_path: Path) -> None:
    server.chunked, server.cut_after = True, 1_500_000
    with pytest.raises(DataError, match=r"cannot fetch .*bytes are kept, run the command again"):
        fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored)
    kept = (tmp_path / "set.tar.gz.part").stat().st_size
    assert kept >= 1 << 20
    server.chunked = False
    assert fetch(server.url(), tmp_path / "set.tar.gz", MD5, ignored).read_bytes() == CONTENT
    assert server.ranges[1] == f"bytes={kept}-" and server.sent[1] == 3_000_000 - kept


@pytest.mark.parametrize("url", ["no url", "ftp:/x", "http://", "http://127.0.0.1:notaport/", "http://a b/"])
def test_a_malformed_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="cannot fetch"):
        fetch(url, tmp_path / "set.tar.gz", MD5, ignored)


def test_a_folder_that_cannot_be_made_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot fetch"):
        fetch(server.url(), tmp_path / "file" / "set.tar.gz", MD5, ignored)


def test_the_published_set_is_told_by_its_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another content than the published one"):
        fetch_cifar10(tmp_path, server.url())
    assert list(tmp_path.iterdir()) == []


def packed(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return content.getvalue()


def test_unpaired_images_are_unpacked_and_what_leads_elsewhere_stays_inside(server: Server, tmp_path: Path) -> None:
    server.content = packed("h2z/trainA/1.jpg", "h2z/testB/1.jpg", "../outside.jpg")
    server.cut_after = 40
    with pytest.raises(DataError, match="run the command again"):
        fetch_horse2zebra(tmp_path / "data", server.url())
    found = fetch_horse2zebra(tmp_path / "data", server.url())
    assert found == tmp_path / "data" / "h2z" and (found / "trainA" / "1.jpg").read_text() == "h2z/trainA/1.jpg"
    assert server.ranges == [None, "bytes=40-"] and not (tmp_path / "outside.jpg").exists()
    assert fetch_horse2zebra(tmp_path / "data", server.url()) == found and len(server.ranges) == 2


@pytest.mark.parametrize("damaged", [b"<html>moved</html>", packed("h2z/trainA/1.jpg")[:-30]])
def test_a_damaged_zip_is_deleted_and_one_of_something_else_refused(
    server: Server, tmp_path: Path, damaged: bytes
) -> None:
    server.content = damaged
    with pytest.raises(DataError, match="it was deleted, try again or another --url"):
        fetch_horse2zebra(tmp_path, server.url())
    assert list(tmp_path.iterdir()) == []
    server.content = packed("other/1.jpg")
    with pytest.raises(DataError, match="holds no folder with trainA; give another --url"):
        fetch_horse2zebra(tmp_path, server.url())
