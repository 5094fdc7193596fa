"""The whole ResNet101 on 32 devices against the unsharded network."""

import jax
import numpy as np
import pytest

from cambrian.models.execution.make_plan import make_plan
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.build_program import build_program
from cambrian.models.resnet.network import network
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import MeshShape, make_mesh
from unsharded import inference_function, outputs_of, relative_error

pytestmark = pytest.mark.slow

ARCHITECTURE = Architecture.resnet(101, "cifar", 10)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def variables():
    return random_variables(ARCHITECTURE)


@pytest.fixture(scope="module")
def unsharded_logits(variables):
    normalised = (IMAGES / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
    return inference_function(ARCHITECTURE, variables)(normalised)


@pytest.mark.parametrize(
    "partition, precision, tolerance", [("intra_sample", "float32", 1e-5), ("auto", "bfloat16", 1e-2)]
)
def test_resnet101_on_4x8_gives_the_unsharded_logits(variables, unsharded_logits, partition, precision, tolerance):
    layers, mesh = network(ARCHITECTURE, 32), MeshShape(4, 8)
    plan = make_plan(layers, mesh, len(IMAGES), "cpu", precision, partition)
    program = build_program(
        ARCHITECTURE,
        variables,
        plan,
        make_mesh(mesh, jax.devices()),
        image_size=32,
        batch_size=len(IMAGES),
        precision=precision,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    if partition == "intra_sample":
        assert plan.intra_sample_flops_fraction(layers, mesh) > 0.9
    assert relative_error(outputs_of(program, IMAGES), unsharded_logits) <= tolerance
