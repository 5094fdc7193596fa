"""Synthetic images, and the choice of a source by --data."""

import functools
import os

import numpy as np
import pytest

import image_cases
from cambrian.commands.images import choose_data
from cambrian.sharding import Preprocessing, UsageError
from run_script import run_script

open_images = functools.partial(
    image_cases.open_images, preprocessing=Preprocessing((8, 6), (8, 6), resize="exact"), num_logits=10
)


def test_512_images_without_labels():
    source, notes = open_images("synthetic")
    assert (len(source), source.class_names, notes) == (512, None, [])
    image = source[12]
    assert (image.name, image.label) == ("synthetic_000012", None)
    assert (image.pixels.shape, image.pixels.dtype) == ((8, 6, 3), np.uint8)


def test_images_depend_on_seed_and_index_alone():
    first, _ = open_images("synthetic", num_images=3)
    again, _ = open_images("synthetic", num_images=9)
    other, _ = open_images("synthetic", num_images=3, seed=1)
    np.testing.assert_array_equal(first[2].pixels, again[2].pixels)
    assert not np.array_equal(first[2].pixels, first[1].pixels)
    assert not np.array_equal(first[2].pixels, other[2].pixels)


def test_an_index_beyond_the_end_is_refused():
    source, _ = open_images("synthetic", num_images=3)
    with pytest.raises(IndexError):
        source[3]
    assert len([*source]) == 3


@pytest.mark.parametrize(
    ("labels", "num_logits"),
    [(("ant", "bee"), 2), ((), 1000), (tuple(f"airplane {number}" for number in range(10)), 10)],
)
def test_auto_is_synthetic_for_models_of_other_classes_and_says_so(labels, num_logits):
    data, (note,) = choose_data(labels, num_logits)
    assert data == "synthetic" and "running on synthetic images" in note


@pytest.mark.parametrize("data", ["no_such_folder", ""])
def test_unknown_data_is_refused(data):
    with pytest.raises(UsageError, match=f"cifar10, cifar10_sample, synthetic or a folder of images, got '{data}'"):
        open_images(data)


@pytest.mark.slow
def test_synthetic_images_load_no_image_library(tmp_path):
    script = (
        "import sys; from cambrian.commands.images import open_source; from cambrian.sharding import Preprocessing\n"
        "open_source('synthetic')[0].read(0, Preprocessing((8, 8), None, resize='none'))\n"
        "print([name for name in ('PIL', 'tensorflow_datasets', 'flax') if name in sys.modules])"
    )
    assert run_script(script, environment=os.environ | {"TFDS_DATA_DIR": str(tmp_path)}) == "[]\n"
