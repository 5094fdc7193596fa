"""An artefact's program inside other JAX code."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.export import Exported
from jax.sharding import Mesh

from cambrian.engine.artifact.contents import read_params, read_portable
from cambrian.engine.artifact.fingerprint import fingerprint
from cambrian.engine.artifact.layout import read_artifact, rebuild_mesh
from cambrian.engine.artifact.load import check_custom_calls
from cambrian.engine.artifact.quarantine import prove
from cambrian.engine.artifact.signing import read_key
from cambrian.sharding import Specs


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Portable:
    """An artefact's program to be called inside other JAX code.

    Attributes:
      exported: program as JAX exported it.
      params: parameters; pass them as an argument of the jitted function, so that they aren't compiled in as constants.
      input_spec: spec of the inputs, moved to the devices by `jax.device_put(inputs, input_spec.sharding(mesh))`, or
        pytree of specs.
      output_spec: spec of the outputs, or pytree of specs.
      mesh: mesh that the program runs on.
      metadata: facts of the program, such as preprocessing and labels.
    """

    exported: Exported = dataclasses.field(repr=False)
    params: list[jax.Array] = dataclasses.field(repr=False)
    input_spec: Specs
    output_spec: Specs
    mesh: Mesh
    metadata: dict = dataclasses.field(repr=False)

    def call(self, params: Sequence[jax.Array], inputs: Any) -> Any:
        """Returns the outputs; may stand under the caller's `jax.jit`, with other computation around it."""
        return self.exported.call(list(params), inputs)


def load_portable(
    path: str | Path, *, devices: Sequence[jax.Device] | None = None, signing_key: str | Path | None = None
) -> Portable:
    """Loads an artefact's portable program and parameters, without compiling or running it in this process.

    A program that isn't signed with this user's key may make no custom calls, and is loaded, compiled and compared with
    its reference in a child process first.

    Args:
      path: directory of the artefact.
      devices: where to run, in mesh order; None for those of the artefact's platform.
      signing_key: path of the user's key file; None for the default one. None is made.

    Raises:
      DamagedArtifact, UsageError, OutOfMemory, ParityError: as `load`.
    """
    path = Path(path)
    manifest, is_signed = read_artifact(path, read_key(signing_key))
    mesh, _ = rebuild_mesh(manifest, devices)
    check_custom_calls(manifest, fingerprint(list(mesh.devices.flat)), path)
    if not is_signed:
        prove(path, manifest)
    exported = read_portable(path, manifest, is_signed)
    params = read_params(path, manifest, mesh)
    return Portable(exported, params, manifest.input_spec, manifest.output_spec, mesh, manifest.metadata)
