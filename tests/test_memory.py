import platform
import sys
import types

import jax
import numpy as np
import pytest

from cambrian.engine.runtime import memory
from cambrian.engine.runtime.memory import (
    check_device_memory,
    predicted_host_memory_bytes,
    predicted_memory_bytes_per_device,
)
from cambrian.sharding import MeshShape, OutOfMemory
from run_script import run_script
from tiny_executable import make_executable

FREE = """
import ctypes, sys
from cambrian.engine.runtime.memory import resident_bytes
from cambrian.sharding.host import host, return_freed_memory

num_devices, *sizes = map(int, sys.argv[1:])
host.permit("malloc")
return_freed_memory(num_devices)
c_library = ctypes.CDLL(None)
c_library.malloc.restype = ctypes.c_void_p
for size in sizes:
    before = resident_bytes()
    memory = ctypes.c_void_p(c_library.malloc(size))
    ctypes.memset(memory, 1, size)
    c_library.free(memory)
    print((resident_bytes() - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has these settings")
@pytest.mark.parametrize(("num_devices", "most_kept_mib"), [(1, 512), (16, 32), (64, 8)])
def test_what_is_freed_is_given_back_above_a_device_share(num_devices, most_kept_mib):
    sizes = [mib * 2**20 for mib in (most_kept_mib + 1, most_kept_mib - 1)]
    printed = run_script(FREE, num_devices, *sizes)
    assert [float(share) for share in printed.split()] == [pytest.approx(kept, abs=0.1) for kept in (0.0, 1.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't tell it")
def test_the_peak_of_a_process_is_its_own():
    before = np.ones(2**27)  # 1 GiB, which a child inherits as its largest resident size
    print_peak = "from cambrian.engine.runtime.memory import peak_host_memory_bytes as peak; print(peak())"
    assert 2**20 < int(run_script(print_peak)) < before.nbytes


def test_predicted_memory_grows_with_the_launches_in_flight():
    executable = make_executable(MeshShape(2, 4), batch_size=8)
    analysis = executable.analysis
    inputs, parameters = 2 * 3 * 4, 3 * 4  # bytes a device holds: 2 of 8 samples, and all of the weight, of 3 float32
    assert analysis.argument_bytes == inputs + parameters
    for threads, launches in ((1, 1), (3, 3), (8, 8), (50, 8)):
        in_flight = analysis.temporary_bytes + launches * (inputs + analysis.output_bytes)
        assert predicted_memory_bytes_per_device(executable, threads) == parameters + in_flight
        assert predicted_host_memory_bytes(executable, threads, 1000) == 1000 + 8 * in_flight


def test_the_memory_limit_is_the_last_size_allowed():
    executable = make_executable(MeshShape(2, 4), batch_size=8)
    predicted = predicted_memory_bytes_per_device(executable, 2)
    assert check_device_memory(executable, 2, predicted) == predicted
    assert check_device_memory(executable, 2, None) == predicted  # a share of the host's memory
    with pytest.raises(OutOfMemory, match="a device must hold .* 2 launches in flight"):
        check_device_memory(executable, 2, predicted - 1)


def test_virtual_devices_have_a_share_of_the_host_and_no_more_than_the_control_group(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(total=1024))
    for group, of_one, of_eight in ((None, 1024, 128), (2**62, 1024, 128), (512, 512, 128), (100, 100, 100)):
        monkeypatch.setattr(memory, "control_group_bytes", lambda group=group: group)
        assert memory.device_memory_bytes(jax.devices()[:1]) == of_one
        assert memory.device_memory_bytes(jax.devices()[:8]) == of_eight
