"""Downloads the published archive of CIFAR-10."""

import hashlib
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from cambrian.sharding import UsageError

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# As TFDS records it (url_checksums/cifar10.txt).
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_TIMEOUT_S = 60  # without any data from the server


def fetch_archive(folder: Path) -> Path:
    """Downloads the archive into `folder`, unless it is there already, and checks it.

    Uses the standard library: TFDS's downloader retries for minutes without a network.

    Raises:
      UsageError: if the download fails, or the file isn't the published one.
    """
    archive = folder / ARCHIVE_URL.rpartition("/")[2]
    try:
        if archive.exists():
            _check(archive)
            return archive
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            download = Path(unfinished) / archive.name
            with urllib.request.urlopen(ARCHIVE_URL, timeout=_TIMEOUT_S) as response, download.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check(download)
            return download.replace(archive)
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise UsageError(f"expected CIFAR-10 from {ARCHIVE_URL}, or that file as {archive}, got: {error}") from error


def _check(archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != ARCHIVE_SHA256:
        raise UsageError(f"{archive} must have the SHA-256 {ARCHIVE_SHA256} of the published CIFAR-10, got {digest}")
