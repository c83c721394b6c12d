"""Downloads by torchvision's own classes; each failure is explained in one line.

torchvision downloads an archive to the data folder, checks its MD5 and unpacks it there. A complete archive that is
there already is not downloaded again, so it may also be put there by hand.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import sys
import tarfile
import urllib.error
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from memtok.data.images import shown
from memtok.data.sources import listing
from memtok.errors import MemtokError, one_line

TIMEOUT = 60.0
"""Seconds without an answer until a download fails."""

NETWORK_ERRORS = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


@dataclass(frozen=True)
class Archive:
    """A published file: its name in the data folder, where it comes from and its MD5 checksum."""

    name: str
    url: str
    md5: str


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Lets one process after the other download to `root`; the later ones find what the first one got."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written, or locked, is for the download to say
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(root / ".memtok-download.lock"))
        yield


def download(
    title: str, get: Callable[[], object], *, root: Path, missing: Sequence[str], archives: Sequence[Archive]
) -> None:
    """Lets torchvision (`get`) download, check and unpack the archives under `root`; progress goes to stderr.

    `missing`: the files or folders that were not found. Raises MemtokError if the download fails; it says which files
    to put where. Complete files stay and are used the next time.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with quiet_download():
            get()
    except NETWORK_ERRORS as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        files = ", ".join(f"{archive.name} ({archive.url}, MD5 {archive.md5})" for archive in archives)
        broken = "".join(
            f"{path.name} of {path.stat().st_size:,} bytes, which is damaged or not whole, and "
            for path, _ in _damaged(root, archives)
        )
        raise MemtokError(
            f"expected {title} in {shown(root)}, found {broken}no {listing(missing, 4)}, and the download failed "
            f"({_reason(error)}); put there, without unpacking: {files}"
        ) from error
    # RuntimeError: torchvision's, of a checksum. The others come from unpacking.
    except (RuntimeError, OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _not_whole(title, root, archives, error) from error


def check_unpacked(root: Path, folder: str) -> None:
    """Raises MemtokError if `folder` was left by an unpacking that did not come to its end; see `unpacking`."""
    marker = _marker(root, folder)
    if not (marker.exists() and (root / folder).exists()):
        return
    with one_at_a_time(root):  # another process may be about to finish
        if marker.exists() and (root / folder).exists():
            raise MemtokError(
                f"expected {folder}/ whole in {shown(root)}, found it partly unpacked, for that was interrupted; "
                f"delete {shown(root / folder)} and {marker.name} beside it, and run again: the archive stays"
            )


@contextmanager
def unpacking(root: Path, folder: str) -> Iterator[None]:
    """`one_at_a_time` around a download that unpacks to `folder`: until that is complete, there is a marker."""
    with one_at_a_time(root):
        if (root / folder).exists():
            yield
            return
        marker = _marker(root, folder)
        try:
            root.mkdir(parents=True, exist_ok=True)
            marker.touch()
        except OSError as error:
            raise MemtokError(
                f"expected a data folder that can be written, found {shown(root)} ({error.strerror}); choose another"
            ) from error
        try:
            yield
        except BaseException:
            if not (root / folder).exists():
                marker.unlink(missing_ok=True)
            raise
        marker.unlink(missing_ok=True)


def _marker(root: Path, folder: str) -> Path:
    return root / f".memtok-unpacking-{folder}"


@contextmanager
def quiet_download() -> Iterator[None]:
    """In the block, what torchvision prints goes to stderr, and a server that does not respond times out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT if before is None else before)
    try:
        with redirect_stdout(sys.stderr):  # some versions of torchvision print
            yield
    finally:
        socket.setdefaulttimeout(before)


def _not_whole(title: str, root: Path, archives: Sequence[Archive], error: Exception) -> MemtokError:
    """The error for a download with a wrong checksum, or for an archive that cannot be unpacked."""
    for path, archive in _damaged(root, archives):
        return MemtokError(
            f"expected {archive.name} of {title} with MD5 {archive.md5}, found {shown(path)} of "
            f"{path.stat().st_size:,} bytes, which is damaged or not whole; run again to download it anew, or put "
            f"there what {archive.url} gives"
        )
    return MemtokError(
        f"expected to download and unpack {title} in {shown(root)}, found: {_reason(error)}; make room or choose "
        "another data folder, and run again: what is whole stays"
    )


def _damaged(root: Path, archives: Sequence[Archive]) -> Iterator[tuple[Path, Archive]]:
    """The archives in the folder that are not as published."""
    from torchvision.datasets.utils import check_integrity

    for archive in archives:
        path = root / archive.name
        if path.is_file() and not check_integrity(str(path), archive.md5):
            yield path, archive


def _reason(error: BaseException) -> str:
    """The text of an error, on one line."""
    return one_line(getattr(error, "reason", "") or error)
