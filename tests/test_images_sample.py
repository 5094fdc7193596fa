"""The packaged sample of CIFAR-10."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cambrian.commands.images import choose_data, for_model, open_source
from cambrian.sharding import Preprocessing, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNCHANGED = Preprocessing((32, 32), (32, 32))


@pytest.fixture(autouse=True)
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))


def test_a_hundred_images_of_each_class():
    source, notes = open_source("cifar10_sample")
    images, more_notes = for_model(source, UNCHANGED, tuple(reversed(CLASSES)), 10)
    assert (len(images), source.class_names, notes, more_notes) == (1000, CLASSES, [], ())
    read = list(images)
    assert [sum(image.label == label for image in read) for label in range(10)] == [100] * 10
    assert (read[0].name, read[0].label, read[-1].name) == ("airplane/0000.jpg", 9, "truck/0990.jpg")
    assert {(image.pixels.shape, image.pixels.dtype) for image in read} == {((32, 32, 3), np.dtype(np.uint8))}
    assert len({image.pixels.tobytes() for image in read}) > 990


def test_sixteen_threads_read_the_same_as_one():
    source, _ = open_source("cifar10_sample", num_images=20)
    images, _ = for_model(source, UNCHANGED, CLASSES, 10)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(images.__getitem__, [*range(20)] * 10))
    for image, expected in zip(read, [*images] * 10, strict=True):
        assert (image.name, image.label) == (expected.name, expected.label)
        np.testing.assert_array_equal(image.pixels, expected.pixels)
    assert {image.label for image in images} == set(range(10))


def test_there_is_no_training_split():
    with pytest.raises(UsageError, match="split test only, got 'train'"):
        open_source("cifar10_sample", split="train")


@pytest.mark.parametrize("labels", [CLASSES, tuple(name.title() for name in reversed(CLASSES)), ()])
def test_auto_takes_it_for_models_of_cifar10_and_says_so(labels, tmp_path):
    data, (note,) = choose_data(labels, 10)
    assert data == "cifar10_sample"
    assert note.startswith(f"no prepared CIFAR-10 in {tmp_path}: running on 1,000 of its test images")
