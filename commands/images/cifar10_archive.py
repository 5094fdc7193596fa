"""Downloads the archive that CIFAR-10 is published as."""

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
_SILENCE_S = 60  # of the server, after which the download has failed


def fetch_archive(folder: Path) -> Path:
    """Downloads the archive into `folder`, unless it is there already, and checks it.

    The standard library does it, because TFDS's downloader retries for minutes where there is no network.

    Raises:
      UsageError: if it can't be downloaded, or isn't the published one.
    """
    archive = folder / ARCHIVE_URL.rpartition("/")[2]
    try:
        if archive.exists():
            _check(archive)
            return archive
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            download = Path(unfinished) / archive.name
            with urllib.request.urlopen(ARCHIVE_URL, timeout=_SILENCE_S) as response, download.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check(download)
            return download.replace(archive)
    except (OSError, HTTPException) as error:  # those of urllib are OSErrors
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise UsageError(f"CIFAR-10 is needed from {ARCHIVE_URL}, or that file as {archive}, got: {error}") from error


def _check(archive: Path) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != ARCHIVE_SHA256:
        raise UsageError(f"{archive} needs the SHA-256 {ARCHIVE_SHA256} of the published CIFAR-10, got {digest}")
