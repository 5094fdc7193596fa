"""Recipe: all settings of a training besides model, data, mesh and seed. Imports no framework."""

import dataclasses
import reprlib

from cambrian.sharding import UsageError

OPTIMIZERS = ("sgd", "adamw")
FREEZES = ("none", "backbone")
_RANGES = {  # field → smallest and largest value
    "epochs": (1, 10**6),
    "batch_size": (1, 2**20),
    "learning_rate": (1e-12, 1e30),
    "warmup_epochs": (0, 10**6),
    "weight_decay": (0, 1e6),
    "crop_padding": (0, 8192),
    "cutout_size": (0, 8192),
    "mixup_alpha": (0, 1e6),
    "accumulation_steps": (1, 2**20),
    "evaluate_every_epochs": (1, 10**6),
    "checkpoint_every_s": (0, 7 * 24 * 3600),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
      freeze: `none` to train the whole network, or `backbone` to train only its last layer, on the features of a
        network in inference mode: batch norms use their running statistics and keep them.
      epochs: number of passes over the training images; each pass drops different images that don't fill a batch.
      batch_size: number of images per step, over all devices.
      optimizer: `sgd`, with Nesterov momentum and weight decay in the gradient, or `adamw`, with decoupled decay.
      learning_rate: peak learning rate, after a linear warm-up and before a cosine decay to 0.
      warmup_epochs: number of epochs of the warm-up.
      momentum: momentum of `sgd`.
      weight_decay: weight decay of kernels; norms and biases don't decay.
      label_smoothing: fraction of the target that is spread over all classes.
      crop_padding: pixels of reflected padding before a random crop to the original size; 0 for no crop.
      flip: whether images are flipped left to right at random.
      cutout_size: edge in pixels of a square that is set to the mean; 0 for none (arXiv:1708.04552).
      mixup_alpha: parameter of the beta distribution of mixup; 0 for no mixup (arXiv:1710.09412).
      ema_decay: decay of the moving average of the weights, which is then evaluated and saved; 0 for no average. It
        starts lower, so that the average forgets the random start.
      accumulation_steps: number of parts of a batch whose gradients are accumulated.
      evaluate_every_epochs: number of epochs between evaluations; the last epoch is always evaluated.
      checkpoint_every_s: seconds between checkpoints; the last step always writes one.

    Raises:
      UsageError: if a value is out of range (states the range).
    """

    freeze: str = "none"
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    crop_padding: int = 4
    flip: bool = True
    cutout_size: int = 0
    mixup_alpha: float = 0.0
    ema_decay: float = 0.0
    accumulation_steps: int = 1
    evaluate_every_epochs: int = 1
    checkpoint_every_s: float = 60.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            kind, value = type(field.default), getattr(self, field.name)
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise UsageError(f"{field.name} must be of type {kind.__name__}, got {reprlib.repr(value)}")
        for name, choices in (("freeze", FREEZES), ("optimizer", OPTIMIZERS)):
            if (value := getattr(self, name)) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must be from {low} to {high}, got {reprlib.repr(getattr(self, name))}")
        for name in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.warmup_epochs >= self.epochs:
            raise UsageError(f"warmup_epochs must be below the {self.epochs} epochs, got {self.warmup_epochs}")

    def steps_per_epoch(self, num_images: int) -> int:
        """Returns the number of steps per epoch.

        Raises:
          UsageError: if the images don't fill a batch.
        """
        if num_images < self.batch_size:
            raise UsageError(f"batch_size must be at most the {num_images} training images, got {self.batch_size}")
        return num_images // self.batch_size
