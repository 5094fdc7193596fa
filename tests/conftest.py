"""Tests run on virtual CPU devices, with strict dtype promotion and a short collective timeout: a deadlock fails.

Those marked `gpu` also run on the platform that CAMBRIAN_TEST_PLATFORM names.
"""

import os
import shutil
import signal
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=60"

import jax
import pytest

PLATFORM = os.environ.get("CAMBRIAN_TEST_PLATFORM", "cpu")

if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 32)
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# A shell's background jobs ignore it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.devices()  # starts the backend now: later, acquire_devices would make just as many as one test asks for


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory):
    """Hides the user's cost table, artefacts, signing key and data from the tests."""
    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TFDS_DATA_DIR"):
            patch.setenv(variable, str(home / variable.lower()))
        yield


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with an artefact of the toy program, and the key that it is signed with."""
    from cambrian.engine import compile_program, save
    from toy_program import toy_program

    folder = tmp_path_factory.mktemp("saved")
    save(compile_program(toy_program()), folder / "artifact", folder / "key")
    return folder


@pytest.fixture
def artifact(saved, tmp_path):
    """A copy of that artefact."""
    return Path(shutil.copytree(saved / "artifact", tmp_path / "artifact"))


@pytest.fixture
def key(saved):
    return saved / "key"
