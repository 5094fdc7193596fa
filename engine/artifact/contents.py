"""What an artefact's files hold, verified and in memory, and the executable made of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.export import Exported
from jax.sharding import Mesh

from cambrian.engine.artifact.layout import PARAMETERS, PORTABLE, PROBE, read_verified
from cambrian.engine.artifact.manifest import Manifest
from cambrian.engine.artifact.serialization import custom_call_targets, from_portable, without_lapack
from cambrian.engine.artifact.tensor_file import parse_tensors
from cambrian.engine.errors import DamagedArtifact, damage_named
from cambrian.engine.runtime.compile import compile_exported, put_params
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.engine.runtime.parity import Parity, run_probe
from cambrian.sharding import TensorSpec, named_arrays


def read_params(path: Path, manifest: Manifest, mesh: Mesh) -> list[jax.Array]:
    """Reads the parameters and moves them to the devices of `mesh`; virtual devices share the memory they were read to.

    Raises:
      DamagedArtifact: naming the file, if it isn't what the manifest states.
    """
    return put_params(_read_tensors(path, PARAMETERS, manifest, manifest.param_specs), manifest.param_specs, mesh)


def read_probe(path: Path, manifest: Manifest) -> tuple[Any, Any]:
    """Reads the probe's inputs and their reference outputs.

    Raises:
      DamagedArtifact: naming the file, if it isn't what the manifest states.
    """
    stated = named_arrays("inputs", manifest.input_spec), named_arrays("outputs", manifest.output_spec)
    inputs = [TensorSpec(name, spec.shape, spec.dtype) for name, spec in stated[0].items()]
    outputs = [
        TensorSpec(name, (*spec.shape, 2) if spec.dtype.startswith("complex") else spec.shape, "float32")
        for name, spec in stated[1].items()
    ]
    arrays = _read_tensors(path, PROBE, manifest, [*inputs, *outputs])
    structures = jax.tree.structure(manifest.input_spec), jax.tree.structure(manifest.output_spec)
    return (
        jax.tree.unflatten(structures[0], arrays[: len(inputs)]),
        jax.tree.unflatten(structures[1], arrays[len(inputs) :]),
    )


def _read_tensors(path: Path, name: str, manifest: Manifest, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """Reads the tensors of a file, which must be those of `specs`, in their order."""
    tensors = parse_tensors(read_verified(path / name, manifest.files[name]), path / name)
    found = {tensor: (array.shape, array.dtype.name) for tensor, array in tensors.items()}
    stated = {spec.name: (spec.shape, spec.dtype) for spec in specs}
    for tensor in [*stated, *found]:
        if found.get(tensor) != stated.get(tensor):
            raise DamagedArtifact(
                f"{path / name} must hold the tensors of the manifest, {tensor!r} {_words(stated.get(tensor))}, "
                f"got {_words(found.get(tensor))}"
            )
    return [tensors[spec.name] for spec in specs]


def _words(tensor: tuple[tuple[int, ...], str] | None) -> str:
    return "none" if tensor is None else f"of shape {tensor[0]} and dtype {tensor[1]}"


def read_portable(path: Path, manifest: Manifest, is_signed: bool) -> Exported:
    """Reads the portable program, to be called under `jax.jit`.

    A custom call runs code of this process on operands of the program's choice, and `jax.export` checks the targets
    only when it writes. So a program that isn't signed may make none, but marks of shardings.

    Raises:
      DamagedArtifact: naming the file, if it isn't what the manifest states, or makes custom calls without a signature.
    """
    path, record = path / PORTABLE, manifest.files[PORTABLE]
    data = read_verified(path, record)
    with damage_named(path, "a program that JAX can read"):
        exported = from_portable(data.tobytes())
        if not is_signed and (targets := custom_call_targets(exported)):
            raise DamagedArtifact(
                f"{path} must hold a program without custom calls, unless it is signed with this user's key, "
                f"got one that calls {targets[0]!r}"
            )
    return exported


def compile_portable(path: Path, manifest: Manifest, exported: Exported, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the portable program.

    Raises:
      DamagedArtifact: naming the file, if JAX refuses it.
    """
    with damage_named(path / PORTABLE, "a program that compiles for the manifest's specs"):
        return compile_exported(
            without_lapack(exported),
            manifest.param_specs,
            manifest.input_spec,
            manifest.output_spec,
            mesh,
            manifest.custom_calls,
        )


def rebuilt_executable(
    manifest: Manifest, mesh: Mesh, kind: str, compiled: jax.stages.Compiled, params: list[jax.Array]
) -> Executable:
    """Puts together the executable, whose `kind` is native or portable."""
    analysis = manifest.analysis if kind == "native" else Analysis.of(compiled)
    assert analysis is not None  # machine code comes with one
    return Executable(
        name=manifest.name,
        kind=kind,
        compiled=compiled,
        params=params,
        param_specs=manifest.param_specs,
        input_spec=manifest.input_spec,
        output_spec=manifest.output_spec,
        mesh=mesh,
        analysis=analysis,
        plan=manifest.plan,
        metadata=manifest.metadata,
    )


def check_probe(path: Path, manifest: Manifest, executable: Executable) -> Parity:
    """Runs the probe and compares its outputs with the reference.

    Raises:
      DamagedArtifact: naming the file, if the probe isn't what the manifest states or can't be computed.
      ParityError: if the outputs differ by more than the manifest's tolerance.
    """
    inputs, outputs = read_probe(path, manifest)
    with damage_named(path / PROBE, "a probe that the program computes"):
        return run_probe(executable, inputs, outputs, manifest.tolerance)
