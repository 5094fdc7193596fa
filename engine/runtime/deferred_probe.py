"""A probe that shares the first launch with real inputs, whose outputs are held back until it has passed."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from cambrian.engine.runtime.batch import num_samples
from cambrian.engine.runtime.parity import Parity, check, run_probe
from cambrian.sharding import MeshShape

if TYPE_CHECKING:
    from cambrian.engine.runtime.executable import Executable


class DeferredProbe:
    """The probe of an executable that this machine has passed as a whole before, with the same code.

    In the first launch it takes a place of each data group, on another device of each next group, and all places that
    the real inputs leave free.

    Attributes:
      parity: difference from the reference; None before the launch.
      room: number of real inputs that the first launch takes; 0 if each group has one place only.
    """

    def __init__(self, mesh: MeshShape, inputs: Any, reference: Any, tolerance: float):
        self.parity: Parity | None = None
        self._inputs, self._reference, self._tolerance = inputs, reference, tolerance
        self._batch_size = num_samples(inputs)
        per_group, per_device = self._batch_size // mesh.data, max(self._batch_size // mesh.num_devices, 1)
        own = [
            group * per_group + min((group % mesh.model + 1) * per_device, per_group) - 1 for group in range(mesh.data)
        ]
        self._places = np.delete(np.arange(self._batch_size), own)  # of real inputs
        self.room = len(self._places)

    def adds_launch(self, num_inputs: int) -> bool:
        """Whether `num_inputs` take one more launch because the probe takes places of the first."""
        own = self._batch_size - self.room
        return -(-(num_inputs + own) // self._batch_size) > -(-num_inputs // self._batch_size)

    def run_alone(self, executable: "Executable") -> None:
        """Launches the whole probe; raises ParityError as `run_probe`."""
        executable = dataclasses.replace(executable, probe=None)
        self.parity = run_probe(executable, self._inputs, self._reference, self._tolerance)

    def mixed_with(self, executable: "Executable", inputs: Any) -> Any:
        """Returns a whole batch of up to `room` real inputs and the probe; raises as `Executable.put`."""
        count = num_samples(inputs)
        if not count:
            return self._inputs
        places = self._places[:count]

        def mix(own: np.ndarray, real: Any) -> np.ndarray:
            mixed = own.copy()
            mixed[places] = real[:count]
            return mixed

        return jax.tree.map(mix, self._inputs, executable.whole_batch(inputs))

    def checked(self, executable: "Executable", outputs: Any, num_inputs: int) -> Any:
        """Compares the probe's part of a launch's outputs with the reference; returns the part of the real inputs.

        Raises:
          ParityError: if the relative error exceeds the tolerance or is NaN.
        """
        real = self._places[:num_inputs]
        probed = np.delete(np.arange(self._batch_size), real)
        found, expected = (jax.tree.map(lambda array: array[probed], whole) for whole in (outputs, self._reference))
        self.parity = check(executable, found, expected, self._tolerance)
        return jax.tree.map(lambda array: array[real], outputs)
