"""BuildOptions: how a model becomes a program, whatever model it is."""

import dataclasses
from typing import TYPE_CHECKING

from jax.sharding import Mesh

from cambrian.commands.configuration import CALIBRATE_S
from cambrian.engine.runtime.memory import device_memory_bytes

if TYPE_CHECKING:
    from cambrian.models import Calibration


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How a model is built for a mesh.

    Attributes:
      batch_size: global number of samples of a launch, a multiple of the data axis; 0 for the one predicted to be best
        of a ResNet, and for the default of the mesh of any other model.
      precision: float32, bfloat16, int8; or auto, which is the faster one of a ResNet, and any other model's own.
      partition: how the model axis cuts layers, as `cambrian.sharding.choose_plan` takes it.
      launches_at_once: number of launches that compute side by side on a single device.
      memory_limit_bytes: of a device; None for its memory.
      calibrate_s: seconds in which to measure what decides the program, where this machine's costs aren't known.
      calibration: for int8.
    """

    batch_size: int = 0
    precision: str = "auto"
    partition: str = "auto"
    launches_at_once: int = 1
    memory_limit_bytes: int | None = None
    calibrate_s: float = CALIBRATE_S
    calibration: "Calibration | None" = None

    def limit_bytes(self, mesh: Mesh) -> int | None:
        """Returns the memory limit of a device of the mesh; None where nothing limits it."""
        return device_memory_bytes(mesh.local_devices) if self.memory_limit_bytes is None else self.memory_limit_bytes
