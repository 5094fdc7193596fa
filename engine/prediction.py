"""What a configuration is expected to take before anything is built."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """Of one configuration.

    Attributes:
      launch_ms: milliseconds of one launch.
      batch_size: images of a launch, over all devices.
      bytes_per_device: memory of a device.
      launches_at_once: that compute side by side.
    """

    launch_ms: float
    batch_size: int
    bytes_per_device: int
    launches_at_once: int = 1

    @property
    def ms_per_image(self) -> float:
        return self.launch_ms / (self.batch_size * self.launches_at_once)
