"""Where images come from: a folder, CIFAR-10, or a random generator."""

from cambrian.commands.images.open import open_source as open_source
from cambrian.commands.images.source import (
    Image as Image,
    ImageSource as ImageSource,
    ModelImages as ModelImages,
    UnreadableImage as UnreadableImage,
    for_model as for_model,
)
