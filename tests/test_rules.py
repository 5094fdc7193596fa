from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cambrian.sharding import MeshShape, UsageError, make_mesh
from cambrian.sharding.rules import match_rules


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshShape(2, 4), jax.devices())


def test_the_first_rule_found_anywhere_in_the_name_decides(mesh):
    rules = [
        ("Dense_0/kernel", P(None, "model")),
        (r"Dense_\d+/kernel$", P("model")),
        ("^bias", P("data")),
        (".*", P()),
    ]
    shapes = {
        "Dense_0/kernel": (16, 32),
        "encoder/Dense_0/kernel": (16, 32),
        "Dense_1/kernel": (16, 32),
        "Dense_1/kernel_scale": (16, 32),
        "bias": (8,),
        "Dense_1/bias": (8,),
    }
    specs, notes = match_rules(rules, shapes, mesh)
    assert list(specs.items()) == [
        ("Dense_0/kernel", P(None, "model")),
        ("encoder/Dense_0/kernel", P(None, "model")),
        ("Dense_1/kernel", P("model")),
        ("Dense_1/kernel_scale", P()),
        ("bias", P("data")),
        ("Dense_1/bias", P()),
    ]
    assert notes == []


def test_a_rule_that_decides_nothing_is_noted(mesh):
    rules = [("kernel", P("model")), ("kernel", P()), ("kernl", P("model")), (".*", P())]
    specs, notes = match_rules(rules, {"kernel": (4,), "bias": (3,)}, mesh)
    assert specs == {"kernel": P("model"), "bias": P()}
    assert notes == [
        "the sharding rule 'kernel' is unused",
        "the sharding rule 'kernl' is unused",
    ]


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((), P()),
        ((2,), P("model")),
        ((8,), P(("model", "data"))),
        ((8, 3), P(("data", "model"))),
        ((4, 2), P("data", "model")),
        ((3, 5, 2), P(None, None, "model")),
    ],
)
def test_what_the_mesh_can_cut(mesh, shape, spec):
    assert match_rules([("x", spec)], {"x": shape}, mesh)[0] == {"x": spec}
    array = jax.device_put(np.zeros(shape), jax.NamedSharding(mesh, spec))
    assert array.shape == shape


@pytest.mark.parametrize(
    ("shape", "spec", "message"),
    [
        ((), P("model"), r"'x' of shape \(\): expected a spec of at most 0 dimensions, got P\('model',?\)"),
        ((4,), P(None, None), r"'x' of shape \(4,\): expected a spec of at most 1 dimensions"),
        ((4,), P("modle"), r"'x' of shape \(4,\): expected mesh axes among model, data, got 'modle'"),
        ((8, 8), P(("data", "tensor")), r"'x' of shape \(8, 8\): expected mesh axes among model, data, got 'tensor'"),
        ((4, 4), P("model", "model"), "each mesh axis at most once, got 'model' 2 times"),
        ((4, 3), P(None, "model"), r"\(4, 3\): dimension 1 must be divisible by 2 for mesh axis 'model' of 2, got 3"),
        ((1,), P("model"), r"\(1,\): dimension 0 must be divisible by 2 for mesh axis 'model' of 2, got 1"),
        ((4,), P(("model", "data")), "dimension 0 must be divisible by 8 for mesh axis 'data' of 4, got 4"),
        ((12,), P(("model", "data")), "dimension 0 must be divisible by 8 for mesh axis 'data' of 4, got 12"),
        ((4,), P(P.UNCONSTRAINED), "expected mesh axes among model, data, got UNCONSTRAINED"),
        ((4,), ("model",), r"'x' of shape \(4,\): expected a PartitionSpec, got \('model',\)"),
    ],
)
def test_what_the_mesh_can_not_cut_names_parameter_shape_and_axis(mesh, shape, spec, message):
    with pytest.raises(UsageError, match=message):
        match_rules([("x", spec)], {"x": shape}, mesh)


def test_every_parameter_needs_a_rule_scalars_too(mesh):
    with pytest.raises(UsageError, match=r"got 'scale' of shape \(\) without one"):
        match_rules([("kernel", P())], {"kernel": (4,), "scale": ()}, mesh)


def test_a_pattern_must_be_a_regular_expression(mesh):
    with pytest.raises(UsageError, match=r"must be a regular expression, got '\('"):
        match_rules([("(", P())], {"x": ()}, mesh)
    rules: Any = {"aa": P()}  # whose keys would unpack to two letters
    with pytest.raises(UsageError, match="must be pairs of a pattern and a PartitionSpec, got 'aa'"):
        match_rules(rules, {"a": ()}, mesh)
