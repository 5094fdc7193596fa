"""The user's signing key, which proves that this user made a native executable: a pickle that is safe to load."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cambrian.sharding import UsageError
from cambrian.sharding.host import config_dir
from cambrian.sharding.host.files import open_regular, temporary_sibling, write_file

KEY_BYTES = 32


def default_key_path() -> Path:
    """Returns `signing.key` in the user's configuration folder."""
    return config_dir() / "signing.key"


def load_key(path: str | Path | None = None) -> bytes:
    """Reads the user's key; makes one if there is none.

    Args:
      path: path of the key file; None for `default_key_path()`.

    Returns:
      32 random bytes.

    Raises:
      UsageError: if others may read or write the file, it isn't a key, or it can't be made.
    """
    path = Path(path or default_key_path())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
    except OSError as error:
        raise UsageError(f"the signing key must be in a writable folder, got {path}: {error.strerror}") from None
    if (key := read_key(path)) is None:
        raise UsageError(f"the signing key must be a readable file, got {path}, a link to nowhere")
    return key


def _make_key(path: Path) -> None:
    # A hard link appears at once with all of its content, and fails if another process has made a key.
    temporary = temporary_sibling(path)
    try:
        write_file(temporary, secrets.token_bytes(KEY_BYTES), mode=0o600)
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def read_key(path: str | Path | None = None) -> bytes | None:
    """Reads the user's key; returns None if there is none.

    Raises:
      UsageError: as `load_key`.
    """
    path = Path(path or default_key_path())
    try:
        with open_regular(path) as file:
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
    """Returns the HMAC-SHA256 of a message, in hexadecimal."""
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def verify(message: bytes, key: bytes, signature: str) -> bool:
    """Returns whether `signature` is `sign(message, key)`, in a time that doesn't depend on where they differ."""
    return hmac.compare_digest(sign(message, key).encode(), signature.encode())
