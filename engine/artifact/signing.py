"""The user's signing key: proof that a native executable, which is a pickle, was made by this user."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cambrian.engine.files import temporary_sibling, write_file
from cambrian.sharding import UsageError
from cambrian.sharding.host import config_dir

KEY_BYTES = 32


def default_key_path() -> Path:
    """`signing.key` in the user's configuration folder."""
    return config_dir() / "signing.key"


def load_key(path: str | Path | None = None) -> bytes:
    """Reads the user's key, and makes one where there is none.

    Args:
      path: the key file; None for `default_key_path()`.

    Returns:
      32 random bytes.

    Raises:
      UsageError: if the file can be read or written by others, isn't a key, or can't be made.
    """
    path = Path(path or default_key_path())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
    except OSError as error:
        raise UsageError(f"the signing key needs a folder it can be made in, got {path}: {error.strerror}") from None
    key = read_key(path)
    assert key is not None
    return key


def _make_key(path: Path) -> None:
    # A hard link appears at once with all of its content, and fails where another process's key already is.
    temporary = temporary_sibling(path)
    try:
        write_file(temporary, secrets.token_bytes(KEY_BYTES), mode=0o600)
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def read_key(path: str | Path | None = None) -> bytes | None:
    """Reads the user's key; None where there is none.

    Raises:
      UsageError: as `load_key`.
    """
    path = Path(path or default_key_path())
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            key = file.read(KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"the signing key must be a readable file, got {path}: {error.strerror}") from None
    if mode & 0o077:
        raise UsageError(
            f"the signing key must be readable by its owner only (mode 0600), got {path} of mode {mode:04o}"
        )
    if len(key) != KEY_BYTES:
        raise UsageError(f"the signing key must be {KEY_BYTES} bytes, got {path} of another length")
    return key


def sign(message: bytes, key: bytes) -> str:
    """HMAC-SHA256, in hexadecimal."""
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def verify(message: bytes, key: bytes, signature: str) -> bool:
    """Whether `signature` is `sign(message, key)`; takes the same time wherever they differ."""
    return hmac.compare_digest(sign(message, key).encode(), signature.encode())
