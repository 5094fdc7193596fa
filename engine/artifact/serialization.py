"""The two forms in which a compiled program is stored.

Native: machine code, bound to the fingerprint; a pickle, so its bytes must be authenticated before they are read here.
Portable: StableHLO by `jax.export`, compiled when it is loaded; no pickle.
"""

import dataclasses
import pickle
from collections.abc import Sequence

import jax
from jax import export
from jax.experimental import serialize_executable
from jax.export import Exported
from jax.extend.mlir import deserialize_portable_artifact
from jax.interpreters import mlir

from cambrian.engine.errors import one_line
from cambrian.sharding import Program, UsageError, jit_program

# Marks of shardings. JAX 0.10 exports none of them for our programs, its older partitioner the first three.
_HARMLESS_TARGETS = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
_HARMLESS_PREFIX = "xla.sdy."


class NotSerializable(Exception):
    """XLA can't serialize an executable, because of something it calls; the message says why."""


def to_native(compiled: jax.stages.Compiled) -> bytes:
    """Returns the machine code of `compiled`.

    Raises:
      NotSerializable: if XLA can't serialize it.
    """
    try:
        return pickle.dumps(serialize_executable.serialize(compiled))
    # MemoryError is how `std::bad_alloc` arrives, which XLA:CPU throws for calls into oneDNN.
    except (ValueError, NotImplementedError, MemoryError, jax.errors.JaxRuntimeError) as error:
        raise NotSerializable(f"{type(error).__name__} {error}".splitlines()[0].strip()) from error


def from_native(data: bytes, devices: Sequence[jax.Device]) -> jax.stages.Compiled:
    """Loads machine code for exactly the devices, in mesh order, that it was compiled for.

    `data` is unpickled: it must come from this user, on a machine with the same fingerprint.
    """
    serialized, in_tree, out_tree = pickle.loads(data)
    return serialize_executable.deserialize_and_load(
        serialized, in_tree, out_tree, backend=devices[0].client, execution_devices=devices
    )


def to_portable(program: Program) -> bytes:
    """Returns the program as StableHLO with its shardings, for the same platform and number of devices.

    Raises:
      UsageError: if JAX can't export it, with the reason.
    """
    checks = [export.DisabledSafetyCheck.custom_call(target) for target in program.custom_calls]
    try:
        exported = export.export(jit_program(program), disabled_checks=checks)
        return bytes(exported(*program.abstract_arguments()).serialize())
    except Exception as error:
        raise UsageError(
            f"a program must be one that JAX can export to be saved, got {program.name}: {one_line(error)}"
        ) from error


def from_portable(data: bytes) -> Exported:
    """Reads what `to_portable` wrote: `.call(params, inputs)` may stand under `jax.jit`."""
    return export.deserialize(bytearray(data))


def without_lapack(exported: Exported) -> Exported:
    """Returns the same program, for which JAX doesn't import SciPy if the program doesn't call LAPACK.

    JAX registers LAPACK before it lowers any program exported for CPU; importing SciPy takes a fifth of a second.
    """
    if exported.platforms != ("cpu",) or any(target.startswith("lapack") for target in _targets(exported)):
        return exported
    checks = (*exported.disabled_safety_checks, export.DisabledSafetyCheck.platform())
    return dataclasses.replace(exported, platforms=("unnamed",), disabled_safety_checks=checks)


def custom_call_targets(exported: Exported) -> list[str]:
    """Returns the targets that a program and its derivatives call, less marks of shardings."""
    targets, program = [], exported
    while program is not None:
        targets += [target for target in _targets(program) if not _is_harmless(target)]
        program = program.vjp() if program.has_vjp() else None
    return targets


def _targets(exported: Exported) -> list[str]:
    targets = []

    def visit(operation):
        if operation.name.endswith("custom_call"):
            targets.append(operation.attributes["call_target_name"].value)
        return mlir.ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        deserialize_portable_artifact(exported.mlir_module_serialized).operation.walk(visit)
    return targets


def _is_harmless(target: str) -> bool:
    return target in _HARMLESS_TARGETS or target.startswith(_HARMLESS_PREFIX)
