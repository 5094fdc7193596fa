import stat
import threading

import pytest

from cambrian.engine.artifact.signing import default_key_path, load_key, read_key, sign, verify
from cambrian.sharding import UsageError


def test_a_key_is_made_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = default_key_path()
    assert path == tmp_path / "cambrian" / "signing.key"
    assert read_key() is None
    key = load_key()
    assert len(key) == 32 and load_key() == key == read_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["signing.key"]
    assert load_key(tmp_path / "other") != key


def test_all_who_make_the_key_at_once_get_the_same(tmp_path):
    for attempt in range(20):
        barrier, keys = threading.Barrier(8), []

        def make(path=tmp_path / str(attempt), barrier=barrier, keys=keys):
            barrier.wait()
            keys.append(load_key(path))

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(keys) == 8 and len(set(keys)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_key_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    load_key(path)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"0600.*{path}.*{mode:04o}"):
        load_key(path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_file_that_is_no_key_is_refused(tmp_path, size):
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(bytes(size))
    with pytest.raises(UsageError, match="32 bytes"):
        load_key(path)


def test_a_key_that_can_not_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=str(tmp_path / "file" / "key")):
        load_key(tmp_path / "file" / "key")


def test_signatures():
    # RFC 4231, test case 2.
    assert sign(b"what do ya want for nothing?", b"Jefe") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )
    assert verify(b"message", b"key", sign(b"message", b"key"))
    assert not verify(b"massage", b"key", sign(b"message", b"key"))
    assert not verify(b"message", b"kex", sign(b"message", b"key"))
    assert not verify(b"message", b"key", "ä")
