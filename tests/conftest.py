"""Tests run on virtual CPU devices, with strict dtype promotion and a short collective timeout: a deadlock fails.

Those marked `gpu` also run on the platform that CAMBRIAN_TEST_PLATFORM names.
"""

import dataclasses
import importlib
import json
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_collective_call_terminate_timeout_seconds=60"

import jax
import pytest

PLATFORM = os.environ.get("CAMBRIAN_TEST_PLATFORM", "cpu")
# Most of the tests' time is compilation, which takes XLA:CPU a third as long without optimisations of its own.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"

if PLATFORM == "cpu":
    jax.config.update("jax_num_cpu_devices", 32)
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Children that crash on purpose leave no core file in the checkout.
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

# A shell's background jobs ignore it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

with pytest.MonkeyPatch.context() as patch:
    if PLATFORM == "cpu":  # in this process alone: commands that tests start compile as a user's
        patch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {QUICK_COMPILATION}")
    jax.devices()  # starts the backend now: later, acquire_devices would make just as many as one test asks for


@pytest.fixture(scope="session", autouse=True)
def quick_compilation():
    """Has programs with custom calls compiled as quickly as all others in this process."""
    module = importlib.import_module("cambrian.sharding.compile_apply")
    with pytest.MonkeyPatch.context() as patch:
        if PLATFORM == "cpu":
            patch.setattr(module, "_LEVEL_OF_CUSTOM_CALLS", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def user_folders(tmp_path_factory):
    """Hides the user's cost table, artefacts, signing key and data from the tests.

    The shipped table passes for this machine's, so that plans are the same everywhere and nothing is calibrated.
    """
    from cambrian.models.costs.machine import SHIPPED, own_table_path, this_machine

    home = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TFDS_DATA_DIR"):
            patch.setenv(variable, str(home / variable.lower()))
        machine = json.dumps({"machine": dataclasses.asdict(this_machine("cpu"))})
        _, *measurements = (SHIPPED / "amd_epyc.jsonl").read_text().splitlines()
        own = own_table_path("cpu")
        own.parent.mkdir(parents=True)
        own.write_text("\n".join([machine, *measurements]) + "\n")
        yield


@pytest.fixture(autouse=True)
def host_permissions():
    """Takes back what a test permits: a command in this process restarts it with huge pages, where it may."""
    from cambrian.sharding.host import host

    before = host.permitted
    yield
    host.decline(*host.permitted - before)
    host.permit(*before)


@pytest.fixture(scope="session")
def online():
    """The toy program, compiled."""
    from cambrian.engine import compile_program
    from toy_program import toy_program

    return compile_program(toy_program())


@pytest.fixture(scope="session")
def saved(online, tmp_path_factory):
    """A folder with its artefact, and the key that it is signed with."""
    from cambrian.engine import save

    folder = tmp_path_factory.mktemp("saved")
    save(online, folder / "artifact", folder / "key")
    return folder


@pytest.fixture
def artifact(saved, tmp_path):
    """A copy of that artefact."""
    return Path(shutil.copytree(saved / "artifact", tmp_path / "artifact"))


@pytest.fixture
def key(saved):
    return saved / "key"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """main.py in processes of its own, with a home that the tests of a file share."""
    from command import Command

    return Command(tmp_path_factory.mktemp("home"))


@pytest.fixture
def classes(tmp_path):
    """A folder of four pictures of three classes."""
    from image_cases import write_classes

    return write_classes(tmp_path)


@pytest.fixture
def address():
    """Where process 0 of several listens."""
    from host_processes import free_port

    return "127.0.0.1", free_port()


@pytest.fixture
def ended(monkeypatch):
    """Set where a process of several would end itself."""
    from cambrian.engine.hosts import group

    ended = threading.Event()
    monkeypatch.setattr(group, "_exit", lambda error: ended.set())
    return ended
