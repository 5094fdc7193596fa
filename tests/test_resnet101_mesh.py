"""The whole ResNet101 on 32 devices against the unsharded network."""

import jax
import numpy as np
import pytest

from cambrian.models.execution.build_program import build_program
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.resnet.architecture import Architecture, network
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import MeshShape, make_mesh

BATCH_SIZE = 8


@pytest.mark.parametrize(
    "partition, precision, tolerance", [("intra_sample", "float32", 1e-5), ("auto", "bfloat16", 1e-2)]
)
def test_resnet101_on_4x8_gives_the_unsharded_logits(partition, precision, tolerance):
    architecture, mesh = Architecture.resnet(101, "cifar", 10), MeshShape(4, 8)
    plan = make_plan(network(architecture, 32), mesh, BATCH_SIZE, "cpu", precision, partition)
    program = build_program(
        architecture,
        random_variables(architecture),
        plan,
        make_mesh(mesh, jax.devices()),
        image_size=32,
        batch_size=BATCH_SIZE,
        precision=precision,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    if partition == "intra_sample":
        assert plan.intra_sample_flops_fraction(network(architecture, 32), mesh) > 0.9
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 32, 32, 3), np.uint8)
    shardings = [spec.sharding(program.mesh) for spec in program.param_specs]
    logits = jax.jit(program.apply)(
        jax.device_put(list(program.params), shardings),
        jax.device_put(images, program.input_spec.sharding(program.mesh)),
    )
    expected = program.reference(images)
    assert np.linalg.norm(logits - expected) <= tolerance * np.linalg.norm(expected)
