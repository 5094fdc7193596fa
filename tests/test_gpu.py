"""What must hold on every platform: parity on each mesh, artefacts that load, and trainings that resume.

CAMBRIAN_TEST_PLATFORM=gpu python -m pytest -m gpu tests/test_gpu.py
"""

import jax
import numpy as np
import pytest

from cambrian import engine
from cambrian.engine.runtime.parity import probe_inputs, reference_outputs, run_probe
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import random_variables
from cambrian.models.training.checkpoints import Checkpoints
from cambrian.sharding import MeshShape, make_mesh
from conftest import PLATFORM
from test_training import Killed, run

pytestmark = pytest.mark.gpu
SMALL = Architecture("cifar", (1, 1), True, 10, width=16)
BATCH, SIZE = 8, 16
CUTS = [("1x1", "auto"), ("1x2", "auto"), ("2x1", "rows"), ("2x2", "channels")]
if PLATFORM == "cpu":  # where test_execute_plan.py cuts in all ways
    CUTS = CUTS[:1]


def small_program(mesh: str, precision: str, partition: str):
    shape = MeshShape.parse(mesh)
    devices = jax.devices()[: shape.num_devices]
    if len(devices) < shape.num_devices:
        pytest.skip(f"needs {shape.num_devices} devices")
    plan = make_plan(network(SMALL, SIZE), shape, BATCH, PLATFORM, precision, partition)
    return build_program(
        SMALL, random_variables(SMALL), plan, make_mesh(shape, devices), image_size=SIZE, batch_size=BATCH,
        precision=precision, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("mesh", "partition"), CUTS)
def test_saved_and_loaded_it_agrees_with_float32_on_one_device(tmp_path, mesh, partition, precision):
    program = small_program(mesh, precision, partition)
    executable = engine.compile_program(program)
    inputs = probe_inputs(program.input_spec)
    run_probe(executable, inputs, reference_outputs(program, inputs), program.tolerance)
    engine.save(executable, tmp_path / "artifact", tmp_path / "key")
    loaded = engine.load(tmp_path / "artifact", devices=list(program.mesh.devices.flat), signing_key=tmp_path / "key")
    assert loaded.kind == ("portable" if program.custom_calls else "native")
    np.testing.assert_allclose(loaded(inputs), executable(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(PLATFORM == "cpu", reason="test_training.py asserts more on CPU")
def test_a_stopped_training_resumes(tmp_path):
    def stop(progress):
        if progress.step >= 4:  # an accelerator takes several steps at once
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "stopped", on_progress=stop)
    assert Checkpoints(tmp_path / "stopped").latest_step()
    resumed, _ = run(tmp_path / "stopped")
    expected, _ = run(tmp_path / "undisturbed")
    for name, value in expected.items():
        np.testing.assert_allclose(resumed[name], value, rtol=1e-2, atol=1e-3, err_msg=name)
