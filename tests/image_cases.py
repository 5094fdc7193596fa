"""Folders of small pictures, and how a model of 8 × 8 pixels reads them."""

from PIL import Image as PillowImage

from cambrian.commands.images import for_model, open_source
from cambrian.sharding import Preprocessing

SIZE = Preprocessing((8, 8), (8, 8))


def open_images(data, *, preprocessing=SIZE, labels=(), num_logits=3, **arguments):
    source, notes = open_source(str(data), **arguments)
    images, more_notes = for_model(source, preprocessing, labels, num_logits)
    return images, [*notes, *more_notes]


def write(path, color=(10, 20, 30), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.new(mode, size, color).save(path, **options)


def names_and_labels(source):
    return [(image.name, image.label) for image in source]


def write_classes(folder):
    """Four pictures of three classes."""
    for name in ("dog/b.PNG", "dog/a.jpeg", "cat/c.jpg", "Blue_Bird/d.png"):
        write(folder / name)
    return folder
