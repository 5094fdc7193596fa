"""The packaged sample of CIFAR-10."""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import image_cases
from cambrian.commands.images import choose_data
from cambrian.sharding import Preprocessing, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
open_images = functools.partial(
    image_cases.open_images, "cifar10_sample", preprocessing=Preprocessing((32, 32), (32, 32)), num_logits=10
)


@pytest.fixture(autouse=True)
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))


def test_a_hundred_images_of_each_class():
    images, notes = open_images(labels=tuple(reversed(CLASSES)))
    assert (len(images), images.source.class_names, notes) == (1000, CLASSES, [])
    read = list(images)
    assert [sum(image.label == label for image in read) for label in range(10)] == [100] * 10
    assert (read[0].name, read[0].label, read[-1].name) == ("airplane/0000.jpg", 9, "truck/0990.jpg")
    assert {(image.pixels.shape, image.pixels.dtype) for image in read} == {((32, 32, 3), np.dtype(np.uint8))}
    assert len({image.pixels.tobytes() for image in read}) > 990


def test_sixteen_threads_read_the_same_as_one():
    images, _ = open_images(labels=CLASSES, num_images=20)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(images.__getitem__, [*range(20)] * 10))
    for image, expected in zip(read, [*images] * 10, strict=True):
        assert (image.name, image.label) == (expected.name, expected.label)
        np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert {image.label for image in images} == set(range(10))


def test_there_is_no_training_split():
    with pytest.raises(UsageError, match="split test only, got 'train'"):
        open_images(split="train")


@pytest.mark.parametrize("labels", [CLASSES, tuple(name.title() for name in reversed(CLASSES)), ()])
def test_auto_takes_it_for_models_of_cifar10_and_says_so(labels, tmp_path):
    data, (note,) = choose_data(labels, 10)
    assert data == "cifar10_sample"
    assert note.startswith(f"no prepared CIFAR-10 in {tmp_path}: running on 1,000 of its test images")
