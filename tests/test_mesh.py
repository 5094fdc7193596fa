import jax
import pytest

from cambrian.sharding import MeshShape, UsageError, make_mesh, mesh_shape
from cambrian.sharding.host import acquire_devices, max_virtual_devices


def test_parse_reads_model_by_data():
    assert MeshShape.parse("4x8") == MeshShape(model=4, data=8)
    assert str(MeshShape(4, 8)) == "4x8"
    assert MeshShape(4, 8).num_devices == 32


@pytest.mark.parametrize("text", ["4by8", "4", "x8", "4x", "4x8x1", "-4x8", "4.0x8", ""])
def test_parse_refuses_other_forms(text):
    with pytest.raises(UsageError, match="MODELxDATA, such as 4x8"):
        MeshShape.parse(text)


@pytest.mark.parametrize("text", ["0x32", "32x0"])
def test_an_axis_needs_a_device(text):
    with pytest.raises(UsageError, match=f"at least 1 device on each axis, got {text}"):
        MeshShape.parse(text)


def test_make_mesh_orders_devices_by_model_then_data():
    mesh = make_mesh(MeshShape(2, 3), jax.devices())
    assert [[device.id for device in row] for row in mesh.devices] == [[0, 1, 2], [3, 4, 5]]
    assert mesh_shape(mesh) == MeshShape(2, 3)


def test_make_mesh_needs_enough_devices():
    with pytest.raises(UsageError, match="mesh 3x3: expected at least 9 devices, got 8"):
        make_mesh(MeshShape(3, 3), jax.devices()[:8])


def test_acquire_devices_gives_exactly_as_many():
    devices, notes = acquire_devices(5, "cpu")
    assert [device.id for device in devices] == [0, 1, 2, 3, 4] and not notes


def test_more_virtual_devices_than_the_limit_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="at most 32 virtual CPU devices"):
        acquire_devices(64, "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=48")
    assert max_virtual_devices() == 48
    with pytest.raises(UsageError, match="at most 48"):
        acquire_devices(49, "cpu")
    # 48 may be asked for, but these tests' backend already runs with 32.
    with pytest.raises(UsageError, match="expected at least 48 CPU devices, got 32 from JAX's backend"):
        acquire_devices(48, "cpu")


def test_a_missing_or_unknown_platform_is_refused():
    with pytest.raises(UsageError, match="expected a platform that JAX can start here, one of cpu, got tpu"):
        acquire_devices(1, "tpu")
    with pytest.raises(UsageError, match="expected a platform among auto, cpu, gpu, tpu, got 'npu'"):
        acquire_devices(1, "npu")
