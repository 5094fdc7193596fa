import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cambrian.engine.errors import ParityError
from cambrian.engine.runtime.parity import Parity, check, compare, probe_inputs, reference_outputs, run_probe
from cambrian.sharding import MeshShape, TensorSpec
from tiny_executable import NUM_FEATURES, make_executable
from toy_program import toy_program


def test_the_worst_sample_counts():
    reference = np.array([[3.0, 4.0], [0.0, 10.0], [0.0, 5.0]], np.float32)
    outputs = reference + np.array([[0.0, 0.5], [0.0, 3.0], [7.0, 0.0]], np.float32)
    assert dataclasses.astuple(compare(outputs, reference)) == pytest.approx((1.4, 2 / 3))
    assert dataclasses.astuple(compare(outputs[:2], reference[:2])) == pytest.approx((0.3, 1.0))


def test_outputs_near_zero_are_compared_on_the_scale_of_the_others():
    reference = np.array([[3.0, 4.0], [0.0, 10.0], [0.01, 0.0]], np.float32)
    outputs = reference + np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.05]], np.float32)
    assert compare(outputs, reference).max_relative_error == pytest.approx(0.01)
    assert compare(outputs[2:], reference[2:]).max_relative_error == pytest.approx(5)


def test_zeros_and_nan():
    zeros = np.zeros((2, 3), np.float32)
    assert compare(zeros, zeros).max_relative_error == 0
    assert compare(zeros + 1, zeros).max_relative_error == np.inf
    assert np.isnan(compare(np.full((2, 3), np.nan, np.float32), zeros + 1).max_relative_error)


def test_infinities_must_be_the_same():
    reference = np.array([[3.0, 4.0, -np.inf], [-np.inf, 5.0, 0.0]], np.float32)
    outputs = reference.copy()
    assert compare(outputs, reference).max_relative_error == 0
    outputs[0, 1] += 0.5
    assert compare(outputs, reference).max_relative_error == pytest.approx(0.1)
    for value in (np.inf, 1e30):
        outputs[0, 2] = value
        assert compare(outputs, reference).max_relative_error == np.inf
    assert compare(np.full((2, 3), -np.inf, np.float32), reference).max_relative_error == np.inf


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_of_integers_a_few_may_differ(dtype):
    reference = np.random.default_rng(0).integers(0, 2, (2, 100)).astype(dtype)
    masks = reference.copy()
    masks[0, 0] ^= True
    assert compare(masks, reference.astype(np.float32)).max_relative_error == pytest.approx((1 / 100) ** 2)
    assert compare(reference[::-1], reference.astype(np.float32)).max_relative_error > 0.1
    off_by_one = np.array([[101, 199]], np.uint8)
    assert compare(off_by_one, np.array([[100, 200]], np.float32)).max_relative_error < 1e-2
    assert compare(np.zeros((4, 0, 3), dtype), np.zeros((4, 0, 3), np.float32)).max_relative_error == 0


def test_of_integers_no_whole_sample_may_differ_but_a_class():
    reference = np.random.default_rng(0).integers(1, 9, (64, 100)).astype(np.int32)
    masks = reference.copy()
    masks[-1] = 0
    assert compare(masks, reference.astype(np.float32)).max_relative_error > 0.5
    classes, few = reference.reshape(-1), masks.reshape(-1)
    assert compare(few, classes.astype(np.float32)).max_relative_error == pytest.approx((1 / 64) ** 2)


def test_both_parts_of_complex_outputs_are_compared():
    outputs = np.array([[3.0 + 4.0j], [5.0j]], np.complex64)
    program = dataclasses.replace(toy_program(), reference=lambda inputs: outputs)
    reference = reference_outputs(program, np.zeros((2, 1), np.float32))
    assert reference.dtype == np.float32
    assert compare(outputs, reference).max_relative_error == 0
    assert compare(outputs.conj(), reference).max_relative_error == pytest.approx(2)


def test_the_reference_of_a_function_that_is_bound_to_its_batch_computes_all_of_it():
    program = dataclasses.replace(toy_program(), reference=lambda inputs: 2 * inputs.reshape(128, 5))
    inputs = probe_inputs(TensorSpec("x", (128, 5), "float32"))
    np.testing.assert_array_equal(reference_outputs(program, inputs), 2 * inputs)


def test_outputs_that_are_no_classes():
    images = np.ones((2, 4, 4, 3), np.float32)
    assert compare(images, images) == Parity(0.0, None)
    with pytest.raises(ValueError, match="same shape"):
        compare(images, images[:1])


def test_of_several_outputs_the_one_with_the_largest_error_is_named():
    executable = make_executable(MeshShape(1, 1), batch_size=4)
    ones = np.ones((4, NUM_FEATURES), np.float32)
    with pytest.raises(ParityError, match="error of 0.01, got 2$"):
        check(executable, ones * 3, ones, 0.01)
    specs = [dataclasses.replace(executable.output_spec, name=f"outputs/{name}") for name in ("hidden", "logits")]
    several = dataclasses.replace(executable, output_spec={"hidden": specs[0], "logits": specs[1]})
    for worst, got in ((3 * ones, "2"), (np.nan * ones, "nan")):
        with pytest.raises(ParityError, match=f"error of 0.01, got {got} in outputs/logits$"):
            check(several, {"hidden": 2 * ones, "logits": worst}, {"hidden": ones, "logits": ones}, 0.01)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "bfloat16", "bool"])
def test_the_probe_is_a_whole_batch_the_same_every_time(dtype):
    spec = TensorSpec("x", (16, 8, 3), dtype)
    inputs = probe_inputs(spec)
    assert inputs.shape == spec.shape and inputs.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(inputs, probe_inputs(spec))
    if dtype in ("int32", "bool"):  # which may be indices into small tables
        assert {*inputs.flat} == {0, 1}
    else:
        assert len(np.unique(inputs)) > 10


@pytest.mark.parametrize("batch_size", [63, 64, 65, 200])
def test_a_large_probe_repeats_samples_in_an_order_without_pattern_and_the_reference_computes_each_once(batch_size):
    inputs = probe_inputs(TensorSpec("x", (batch_size, 5), "float32"))
    assert len(np.unique(inputs, axis=0)) == min(batch_size, 64)
    assert batch_size <= 64 or not np.array_equal(inputs[64:], inputs[: batch_size - 64])
    computed = []

    def reference(samples: np.ndarray) -> np.ndarray:
        computed.append(len(samples))
        return 2 * samples

    program = dataclasses.replace(toy_program(), reference=reference)
    np.testing.assert_array_equal(reference_outputs(program, inputs), 2 * inputs)
    assert computed == [min(batch_size, 64)]


def test_after_the_probe_no_device_computes_any_more():
    """A device that did would read parameters whose file somebody may have replaced."""
    executable = make_executable(MeshShape(2, 1), batch_size=4)
    launches = []

    def local(weight, inputs):
        late = jax.lax.fori_loop(0, 1_000_000 * jax.lax.axis_index("model"), lambda _, x: x + 1, inputs)
        return late - late + inputs * weight

    @jax.jit
    def replicated_output_of_a_late_device(params, inputs):
        specs = (P(), P("data"))
        return jax.shard_map(local, mesh=executable.mesh, in_specs=specs, out_specs=P("data"), check_vma=False)(
            params[0], inputs
        )

    def compiled(params, inputs):
        launches.append(replicated_output_of_a_late_device(params, inputs))
        return launches[-1]

    inputs = np.ones((4, NUM_FEATURES), np.float32)
    late = dataclasses.replace(executable, compiled=compiled)
    assert run_probe(late, inputs, inputs * np.arange(1, NUM_FEATURES + 1), 1e-6).max_relative_error == 0
    assert launches[0].is_ready()
