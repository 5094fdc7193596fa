"""Checkpoints that can't be written: the error names them, and the one before stays."""

import errno
import shutil

import jax.numpy as jnp
import pytest

from cambrian.models.training.checkpoints import Checkpoints
from cambrian.models.training.steps import TrainState


def state_at(step: int) -> TrainState:
    count = jnp.int32(0)
    return TrainState(jnp.int32(step), {"weight": jnp.ones(3)}, {}, {}, {}, (), jnp.float32(0), count, count)


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state_at(1), {})
    return checkpoints


def check_left(checkpoints: Checkpoints) -> None:
    assert [path.name for path in checkpoints.folder.iterdir()] == ["1"]
    assert Checkpoints(checkpoints.folder).latest_step() == 1


def test_a_disk_too_small_for_a_checkpoint(checkpoints, monkeypatch):
    usage = shutil.disk_usage(checkpoints.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '.*/checkpoints/2'$"):
        checkpoints.save(state_at(2), {})
    check_left(checkpoints)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("RESOURCE_EXHAUSTED: Failed writing: \"a/b\": Disk quota exceeded [os_error_code='122']"), 122),
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
    ],
)
def test_an_error_of_orbax_names_the_checkpoint(checkpoints, monkeypatch, error, code):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(checkpoints._orbax, "save", fail)
    with pytest.raises(OSError, match=r"'.*/checkpoints/2'$") as raised:
        checkpoints.save(state_at(2), {})
    assert raised.value.errno == code
    check_left(checkpoints)
