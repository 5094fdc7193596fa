"""An artefact's program inside other JAX code."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.export import Exported
from jax.sharding import Mesh

from cambrian.engine.artifact.layout import PORTABLE, load_params, read_artifact, read_verified, rebuild_mesh
from cambrian.engine.artifact.serialization import from_untrusted_portable
from cambrian.sharding import TensorSpec


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Portable:
    """An artefact's program to be called inside other JAX code.

    Attributes:
      exported: the program as JAX exported it.
      params: to be passed as an argument of the jitted function, so that they are not compiled in as constants.
      input_spec, output_spec, mesh: inputs go to the devices by `jax.device_put(inputs, input_spec.sharding(mesh))`.
      metadata: preprocessing, labels, weights.
    """

    exported: Exported = dataclasses.field(repr=False)
    params: list[jax.Array] = dataclasses.field(repr=False)
    input_spec: TensorSpec
    output_spec: TensorSpec
    mesh: Mesh
    metadata: dict = dataclasses.field(repr=False)

    def call(self, params: Sequence[jax.Array], inputs: jax.Array) -> jax.Array:
        """The outputs; may stand under the caller's `jax.jit`, with other computation around it."""
        return self.exported.call(list(params), inputs)


def load_portable(path: str | Path, *, devices: Sequence[jax.Device] | None = None) -> Portable:
    """Loads an artefact's portable program and parameters, without compiling or running it.

    Raises:
      DamagedArtifact, UsageError: as `load` of an artefact that is not signed with this user's key.
    """
    path = Path(path)
    manifest, _ = read_artifact(path, None)
    mesh, _ = rebuild_mesh(manifest, devices)
    exported = from_untrusted_portable(read_verified(path, PORTABLE, manifest), path / PORTABLE)
    params = load_params(path, manifest, mesh)
    return Portable(exported, params, manifest.input_spec, manifest.output_spec, mesh, manifest.metadata)
