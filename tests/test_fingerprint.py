import json

import jax
import pytest

from cambrian.engine.artifact.fingerprint import difference, fingerprint


@pytest.fixture
def here():
    return fingerprint(jax.devices()[:8])


def test_it_survives_json_and_equals_itself(here):
    assert difference(json.loads(json.dumps(here)), fingerprint(jax.devices()[:8])) is None
    assert here["jax"] == jax.__version__ and here["CPU features"] and here["CPU threads"] >= 1


def test_differences_in_words(here):
    assert difference(here | {"jax": "0.1.0"}, here) == f"built with jax 0.1.0, here {jax.__version__}"
    more = sorted([*here["CPU features"], "zzz"])
    assert difference(here | {"CPU features": more}, here) == "built with CPU features zzz, here none besides"
    assert difference({"jax": here["jax"]}, here) == f"built with jaxlib unknown, here {here['jaxlib']}"
    assert "device ids 0, 1, 2, 3 and 4 more, here 8, 9" in str(difference(here, fingerprint(jax.devices()[8:16])))
    assert difference(here | {"future": 1}, here) == "built with future 1, here unknown"
    swapped = here | {"device ids": [1, 0, *here["device ids"][2:]]}
    assert difference(swapped, here) == "built with device ids 1, 0, here 0, 1"
    long = "LLVM " + "x" * 100
    built, found = here | {"platform version": f"{long} 20"}, here | {"platform version": f"{long} 21"}
    assert difference(built, found) == f"built with platform version …{'x' * 18} 20, here …{'x' * 18} 21"


def test_only_flags_that_change_the_code_count(here, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_cpu_collective_timeout_seconds=5")
    assert fingerprint(jax.devices()[:8]) == here
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_cpu_enable_fast_math=true --xla_a=2")
    changed = fingerprint(jax.devices()[:8])
    assert changed["XLA flags"] == ["--xla_a=2", "--xla_cpu_enable_fast_math=true"]
    assert "XLA flags" in str(difference(here, changed))


def test_the_size_of_the_thread_pool_counts(here, monkeypatch):
    monkeypatch.setenv("NPROC", str(here["CPU threads"] + 1))
    assert "CPU threads" in str(difference(here, fingerprint(jax.devices()[:8])))
