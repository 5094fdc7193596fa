"""A Recipe: everything a training depends on besides model, data, mesh and seed. Loads no framework."""

import dataclasses

from cambrian.sharding import UsageError

OPTIMIZERS = ("sgd", "adamw")


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained.

    Attributes:
      epochs: passes over the training images; images that fill no batch are left out, others in each epoch.
      batch_size: images of a step over all devices.
      optimizer: `sgd`, with Nesterov momentum and the decay added to the gradient, or `adamw`, with the decay apart.
      learning_rate: its peak; it rises to it linearly and falls to 0 by half a cosine.
      warmup_epochs: of the rise.
      momentum: of `sgd`.
      weight_decay: of convolution kernels and of the head's; never of norms and biases.
      label_smoothing: share of the target that is spread over all classes.
      crop_padding: pixels by which an image is mirrored outwards before a random crop to its size; 0: no crop.
      flip: whether images are mirrored left to right at random.
      cutout_size: edge in pixels of a square of each image that is set to the mean; 0: none (arXiv:1708.04552).
      mixup_alpha: of the beta distribution by which pairs of images are mixed; 0: none (arXiv:1710.09412).
      ema_decay: of the moving average of the weights, which is then what is evaluated and kept; 0: no average. It
        starts lower, so that it forgets the random start.
      accumulation_steps: parts of a batch whose gradients are added up before the weights change.
      evaluate_every_epochs: how often the evaluation images are classified; after the last epoch always.
      checkpoint_every_s: seconds between checkpoints; one more is written at the end.

    Raises:
      UsageError: if a value is out of its range, stating the range.
    """

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
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        for name in ("epochs", "batch_size", "accumulation_steps", "evaluate_every_epochs"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        names = ("weight_decay", "crop_padding", "cutout_size", "mixup_alpha", "checkpoint_every_s", "warmup_epochs")
        for name in names:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("momentum", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.learning_rate <= 0:
            raise UsageError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.warmup_epochs >= self.epochs:
            raise UsageError(f"warmup_epochs must be below the {self.epochs} epochs, got {self.warmup_epochs}")

    def steps_per_epoch(self, num_images: int) -> int:
        """Steps of an epoch over so many images.

        Raises:
          UsageError: if they fill no batch.
        """
        if num_images < self.batch_size:
            raise UsageError(f"batch_size must be at most the {num_images} training images, got {self.batch_size}")
        return num_images // self.batch_size
