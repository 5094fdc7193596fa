"""Parity: compares an executable with its unsharded reference on one batch, the probe."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cambrian.engine.errors import ParityError
from cambrian.engine.runtime.batch import num_samples
from cambrian.sharding import MIXES_SAMPLES, Program, Specs, TensorSpec, random_array

if TYPE_CHECKING:
    from cambrian.engine.runtime.executable import Executable


NUM_PROBE_SAMPLES = 64  # distinct ones
_MANY_VALUES = 100  # of a sample: one of them that differs is within a tolerance of 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """Difference of outputs from their reference.

    Attributes:
      max_relative_error: the largest, over samples and arrays, of norm(output - reference) / scale, where the scale is
        the norm of the sample's reference, or the median of these norms if that is larger: a sample whose outputs
        nearly cancel has the rounding errors of the others. Of integers, which jump where floats nearly tie, it is the
        squared share of those that differ, if that is less: of a sample's if it has many, else of the array's.
      top1_agreement: share of samples with the same most probable class; None unless outputs are an array (N, classes).
    """

    max_relative_error: float
    top1_agreement: float | None


def compare(outputs: Any, reference: Any) -> Parity:
    """Compares outputs (N, …), an array or a pytree, with their reference of the same structure, in float64.

    Where all references are zero, the error is 0 if the outputs are zero, else infinity; one NaN makes it NaN. An
    infinity must be the same in both. Of complex outputs (N, …) the reference is (N, …, 2), as `reference_outputs` is.

    Raises:
      ValueError: if the shapes differ.
    """
    if isinstance(outputs, (dict, list, tuple)):
        pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(reference), strict=True)
        return Parity(float(np.max([compare(*pair).max_relative_error for pair in pairs])), None)
    outputs = _real(outputs)
    if outputs.shape != reference.shape:
        raise ValueError(f"outputs and reference must have the same shape, got {outputs.shape} and {reference.shape}")
    expected = reference.astype(np.float64).reshape(len(reference), -1)
    got = outputs.astype(np.float64).reshape(len(outputs), -1)
    with np.errstate(invalid="ignore"):  # of infinities, which masks leave
        difference = np.where(got == expected, 0.0, got - expected)
    error = np.linalg.norm(difference, axis=1)
    norm = np.linalg.norm(np.where(np.isinf(expected), 0.0, expected), axis=1)
    scale = np.maximum(norm, np.median(norm))
    relative = np.divide(error, scale, out=np.where(error == 0, 0.0, np.inf), where=scale != 0)
    if outputs.dtype.kind in "biu" and outputs.size:
        differs = got != expected
        relative = np.minimum(relative, differs.mean(axis=1 if differs.shape[1] >= _MANY_VALUES else None) ** 2)
    agreement = None
    if outputs.ndim == 2:
        agreement = float(np.mean(np.argmax(outputs, axis=1) == np.argmax(reference, axis=1)))
    return Parity(float(relative.max()), agreement)


def probe_inputs(specs: Specs, samples: np.ndarray | None = None) -> Any:
    """Returns one whole batch for an input's spec, or for a pytree of specs, the same every time.

    A batch of more than `NUM_PROBE_SAMPLES` repeats them in an order without pattern: a sample in the wrong place is
    noticed, and the reference has few samples to compute.

    Args:
      samples: of a single input, (M, …), from which the distinct ones are taken. None, or too few of them, draws random
        ones.
    """
    random = np.random.default_rng(0)
    return jax.tree.map(lambda spec: _probe_input(spec, samples, random), specs)


def _probe_input(spec: TensorSpec, samples: np.ndarray | None, random: np.random.Generator) -> np.ndarray:
    order = _probe_order(spec.shape[0])
    shape = (order.max(initial=-1) + 1, *spec.shape[1:])
    if samples is not None and len(samples) >= shape[0]:
        return samples[order]
    return random_array(shape, np.dtype(spec.dtype), random)[order]


def reference_outputs(program: Program, inputs: Any) -> Any:
    """Returns the reference's float32 outputs for `probe_inputs`; computes each distinct sample once if it can."""
    order = _probe_order(num_samples(inputs))
    places = np.unique(order, return_index=True)[1]
    if MIXES_SAMPLES not in program.metadata and len(places) < len(order):
        # Whatever a function raises that is bound to its number of samples.
        with contextlib.suppress(Exception):
            outputs = program.reference(jax.tree.map(lambda array: array[places], inputs))
            return jax.tree.map(lambda array: np.asarray(_real(array), np.float32)[order], outputs)
    return jax.tree.map(lambda array: np.asarray(_real(array), np.float32), program.reference(inputs))


def _real(array: np.ndarray) -> np.ndarray:
    """Complex numbers as their two parts, which a file can hold."""
    return np.stack([array.real, array.imag], axis=-1) if np.iscomplexobj(array) else array


def _probe_order(batch_size: int) -> np.ndarray:
    """The index of the distinct sample at each place of a batch; all of them occur."""
    distinct = min(batch_size, NUM_PROBE_SAMPLES)
    repeated = np.random.default_rng(1).integers(0, max(distinct, 1), batch_size - distinct)
    return np.concatenate([np.arange(distinct), repeated])


def run_probe(executable: "Executable", inputs: Any, reference: Any, tolerance: float) -> Parity:
    """Launches the executable once on a whole batch, which also warms it up, and compares its outputs.

    Raises:
      ParityError: if the relative error exceeds `tolerance` or is NaN.
    """
    rows = slice(executable.rows.start, executable.rows.stop)
    own, expected = (jax.tree.map(lambda array: array[rows], whole) for whole in (inputs, reference))
    return check(executable, executable(own), expected, tolerance)


def check(executable: "Executable", outputs: Any, reference: Any, tolerance: float) -> Parity:
    """Compares an executable's outputs with their reference.

    Raises:
      ParityError: if the relative error exceeds `tolerance` or is NaN.
    """
    parity = compare(outputs, reference)
    if not parity.max_relative_error <= tolerance:
        raise ParityError(
            f"{executable.name} ({executable.kind}) must agree with the unsharded reference to a relative "
            f"error of {tolerance:g}, got {parity.max_relative_error:g}{_place(executable, outputs, reference)}",
            parity,
        )
    return parity


def _place(executable: "Executable", outputs: Any, reference: Any) -> str:
    """Which of several arrays has the largest error."""
    if isinstance(executable.output_spec, TensorSpec):
        return ""
    pairs = zip(jax.tree.leaves(outputs), jax.tree.leaves(reference), strict=True)
    worst = np.argmax([compare(*pair).max_relative_error for pair in pairs])
    return f" in {jax.tree.leaves(executable.output_spec)[worst].name}"
