import json
import os
import textwrap

import pytest

from cambrian.sharding import MeshShape
from cambrian.sharding.host import core_sharing, host_cores, launches_at_once, planned_as
from run_script import run_script

THREADS = ("PJRT_NPROC", "NPROC")


def in_new_process(code: str, **variables: str) -> dict:
    inherited = {name: value for name, value in os.environ.items() if name not in THREADS}
    return json.loads(run_script(textwrap.dedent(code), environment=inherited | variables))


@pytest.mark.parametrize(
    ("num_devices", "threads", "launches", "cores"),
    [
        *[(1, 1, 1, 8), (1, 2, 2, 4), (1, 3, 3, 2), (1, 8, 8, 1), (1, 9, 8, 1)],
        *[(2, 1, 1, 4), (2, 16, 1, 4), (7, 2, 1, 1), (8, 2, 1, 1), (9, 2, 1, 1), (32, 2, 1, 1)],
    ],
)
def test_devices_or_launches_divide_the_cores(monkeypatch, num_devices, threads, launches, cores):
    monkeypatch.setattr(core_sharing, "host_cores", lambda: 8)
    assert launches_at_once(num_devices, threads, "bfloat16") == launches
    assert launches_at_once(num_devices, threads, "int8") == launches
    assert core_sharing.cores_per_device(num_devices, launches) == cores
    assert launches_at_once(num_devices, threads, "float32") == 1
    for computes in (False, True):
        monkeypatch.setattr(core_sharing, "computes_bfloat16", lambda _, computes=computes: computes)
        assert launches_at_once(num_devices, threads, "auto") == (launches if computes else 1)


def test_launches_at_once_are_planned_as_devices_of_a_mesh():
    assert planned_as(MeshShape(4, 8), 64, 1) == (MeshShape(4, 8), 64)
    assert planned_as(MeshShape(1, 1), 8, 1) == (MeshShape(1, 1), 8)
    assert planned_as(MeshShape(1, 1), 8, 3) == (MeshShape(1, 3), 24)


@pytest.mark.slow
def test_a_backend_has_the_threads_of_its_share_and_child_processes_do_not_inherit_them():
    found = in_new_process(
        """
        import json, os
        from cambrian.sharding.host import core_sharing, acquire_devices, cpu_threads
        devices, _ = acquire_devices(32, "cpu")
        print(json.dumps([len(devices), cpu_threads(), "PJRT_NPROC" in os.environ]))
        """
    )
    assert found == [32, max(1, host_cores() // 32), False]


@pytest.mark.slow
def test_a_backend_that_already_runs_keeps_its_threads_and_dispatch():
    code = """
        import json
        from cambrian.sharding.host import acquire_devices, cpu_threads, launches_run_side_by_side
        for launches in ({first}, {second}):
            acquire_devices(1, "cpu", launches)
        print(json.dumps([cpu_threads(), launches_run_side_by_side()]))
        """
    assert in_new_process(code.format(first=1, second=2)) == [host_cores(), False]
    assert in_new_process(code.format(first=2, second=1)) == [max(1, host_cores() // 2), True]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [THREADS, THREADS[::-1]])
def test_the_user_s_number_of_threads_is_kept(name, other):
    code = """
        import json, os
        from cambrian.sharding.host import core_sharing, acquire_devices, cpu_threads
        acquire_devices(4, "cpu")
        print(json.dumps([cpu_threads(), {k: os.environ.get(k) for k in ("PJRT_NPROC", "NPROC")}]))
        """
    assert in_new_process(code, **{name: "3"}) == [3, {name: "3", other: None}]


@pytest.mark.slow
def test_devices_that_the_user_asked_for_stay():
    code = """
        import json, jax
        from cambrian.sharding.host import core_sharing, acquire_devices
        jax.config.update("jax_num_cpu_devices", 3)
        print(json.dumps([len(acquire_devices(count, "cpu")[0]) for count in (1, 2)] + [len(jax.devices())]))
        """
    assert in_new_process(code) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(host_cores() < 2, reason="one core computes one launch at a time")
def test_launches_on_one_device_are_computed_by_the_threads_that_launch():
    computed_by_launcher, side_by_side, equal = in_new_process(
        """
        import json, time
        from concurrent.futures import ThreadPoolExecutor
        from cambrian.sharding.host import core_sharing, acquire_devices, launches_run_side_by_side
        devices, _ = acquire_devices(1, "cpu", launches_at_once=2)
        import jax, jax.numpy as jnp, numpy as np
        from cambrian.engine.runtime.launch import launch

        def compute(params, x):
            return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ params[0]), x)

        weights = jax.device_put(np.eye(256, dtype=np.float32), devices[0])
        x = jax.device_put(np.ones((256, 256), np.float32), devices[0])
        compiled = jax.jit(compute).lower([weights], x).compile()
        expected = np.asarray(launch(compiled, [weights], x))

        def call(_):
            start = time.thread_time()
            outputs = launch(compiled, [weights], x)
            return time.thread_time() - start, bool((np.asarray(outputs) == expected).all())

        start = time.process_time()
        with ThreadPoolExecutor(2) as pool:
            times, equal = zip(*pool.map(call, range(8)))
        share = sum(times) / (time.process_time() - start)
        print(json.dumps([share, launches_run_side_by_side(), all(equal)]))
        """
    )
    assert computed_by_launcher > 0.8 and side_by_side and equal
