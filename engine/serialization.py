"""The two forms in which a compiled program is stored.

Native: machine code, bound to the fingerprint; a pickle, so its bytes must be authenticated before they are read here.
Portable: StableHLO by `jax.export`, to be compiled on load; no pickle.
"""

import pickle
from collections.abc import Sequence

import jax
from jax import export
from jax.experimental import serialize_executable
from jax.export import Exported

from engine.compile import jit_program
from sharding import Program


class NotSerializable(Exception):
    """XLA can't serialize an executable, because of something it calls; the message says why."""


def to_native(compiled: jax.stages.Compiled) -> bytes:
    """The machine code of `compiled`.

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
    """The program as StableHLO with its shardings, for the same platform and number of devices."""
    return bytes(export.export(jit_program(program))(*program.abstract_arguments()).serialize())


def from_portable(data: bytes) -> Exported:
    """Reads what `to_portable` wrote: `.call(params, inputs)` may stand under `jax.jit`."""
    return export.deserialize(bytearray(data))
