"""Where images come from: a folder, CIFAR-10 or its packaged sample, or a random generator."""

from cambrian.commands.images.open import choose_data as choose_data, open_source as open_source
from cambrian.commands.images.source import (
    Image as Image,
    ImageSource as ImageSource,
    ModelImages as ModelImages,
    UnreadableImage as UnreadableImage,
    for_model as for_model,
)
