"""Downloads published data sets, resumes interrupted downloads, and checks the result."""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from wallclock.loaders.batches import DataError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_MD5 = "c58f30108f718f92721af3b95e74349a"
HORSE2ZEBRA_URL = "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets/horse2zebra.zip"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60

Progress = Callable[[int, int | None], None]


def fetch_cifar10(folder: Path, url: str = CIFAR10_URL, progress: Progress = lambda done, total: None) -> Path:
    """Downloads the archive of CIFAR-10's python batches, unless it is there already.

    Args:
        folder: folder for the archive; made if missing.
        url: address of the archive; its content must be the published one.
        progress: function called with the bytes done and the total bytes (None when the server does not say).

    Returns:
        Path of the archive, for `--data`, which reads it without extracting it.

    Raises:
        DataError: if the connection fails (what arrived is kept and resumed) or the checksum is not the published one.
    """
    return fetch(url, folder / "cifar-10-python.tar.gz", CIFAR10_MD5, progress)


def fetch_horse2zebra(folder: Path, url: str = HORSE2ZEBRA_URL, progress: Progress = lambda done, total: None) -> Path:
    """Downloads CycleGAN's horses and zebras, a ZIP file, and unpacks them; arguments are those of `fetch_cifar10`.

    Returns:
        Path of the folder that holds `trainA` and the other parts, for `--data`.

    Raises:
        DataError: if the connection fails (what arrived is kept and resumed), or the file is damaged. No checksum
            of the file is published, so its own are checked.
    """
    archive = fetch(url, folder / "horse2zebra.zip", None, progress)
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)  # drops paths that would lead out of the folder
            found = {name.split("/")[0] for name in packed.namelist() if "/trainA/" in name}
    except OSError as error:
        raise DataError(f"cannot unpack {archive}: {error.strerror}; make room and run the command again") from None
    if len(found) != 1:
        raise DataError(f"{archive} holds no folder with trainA; give another --url")
    return folder / found.pop()


def fetch(url: str, target: Path, md5: str | None, progress: Progress) -> Path:
    """Downloads `url` to `target` through `target.part`, and resumes where an earlier attempt stopped.

    Args:
        url: address, http or https.
        target: file to write; nothing is downloaded if it is there with the right checksum.
        md5: hex digest of the whole content; None for a ZIP file, which is checked by its own checksums.
        progress: function called with the bytes done and the total bytes, see `fetch_cifar10`.

    Raises:
        DataError: if the connection fails or the content is damaged, see `fetch_cifar10`.
    """
    if target.exists() and _is_whole(target, md5):
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _append(url, part, progress)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url} answered {error.code} {error.reason}; try again later, or another --url") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        kept = part.stat().st_size if part.exists() else 0
        raise DataError(
            f"cannot fetch {url} ({error}); {kept:,} bytes are kept, run the command again to go on"
        ) from None
    if not _is_whole(part, md5):
        part.unlink()
        raise DataError(
            f"{url} delivered another content than the published one; it was deleted, try again or another --url"
        )
    part.replace(target)
    return target


def _append(url: str, part: Path, progress: Progress) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and done:  # nothing left to send: this file is whole, or of other content
            return
        raise
    with answer:
        if answer.status != 206:
            done = 0  # the server does not resume
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _is_whole(path: Path, md5: str | None) -> bool:
    if md5 is None:
        try:
            with zipfile.ZipFile(path) as packed:
                return packed.testzip() is None
        except zipfile.BadZipFile:
            return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
