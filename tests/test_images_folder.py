"""Folders of images: their layouts, how many images are taken, and threads that read them."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cambrian.sharding import UsageError
from image_cases import names_and_labels, open_images, write


def test_class_folders_are_numbered_in_sorted_order(classes):
    source, notes = open_images(classes)
    assert names_and_labels(source) == [("Blue_Bird/d.png", 0), ("cat/c.jpg", 1), ("dog/a.jpeg", 2), ("dog/b.PNG", 2)]
    assert source.class_names == ("Blue_Bird", "cat", "dog")
    assert notes == ["the model has no labels: its 3 logits are taken to be the classes in the order of their names"]


def test_a_split_level_is_found_by_the_split_asked_for(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "holdout/cat/c.png"):
        write(tmp_path / name)
    source, _ = open_images(tmp_path, split="train")
    assert names_and_labels(source) == [("cat/a.png", 0), ("dog/b.png", 1)]
    source, _ = open_images(tmp_path, split="holdout")
    assert names_and_labels(source) == [("cat/c.png", 0)]


def test_a_split_may_be_unlabelled(tmp_path):
    write(tmp_path / "test" / "a.png")
    source, _ = open_images(tmp_path)
    assert (names_and_labels(source), source.class_names) == ([("a.png", None)], None)


def test_a_missing_split_is_refused_and_names_those_there_are(tmp_path):
    write(tmp_path / "train" / "cat" / "a.png")
    write(tmp_path / "val" / "cat" / "a.png")
    with pytest.raises(UsageError, match=r"split must be one of train, val in .*, got 'test'"):
        open_images(tmp_path)


def test_a_split_of_a_folder_without_splits_is_refused(classes):
    with pytest.raises(UsageError, match=r"split must be left out for a folder without splits, got .train. with "):
        open_images(classes, split="train")
    assert len(open_images(classes, split="train", splits_optional=True)[0]) == 4


def test_images_directly_inside_are_unlabelled(tmp_path):
    for name in ("b.jpg", "a.png", ".hidden.png"):
        write(tmp_path / name)
    source, notes = open_images(tmp_path, labels=("cat", "dog"))
    assert names_and_labels(source) == [("a.png", None), ("b.jpg", None)]
    assert (source.class_names, notes) == (None, [f"no accuracy: the images in {tmp_path} have no labels"])


def test_other_files_are_ignored_with_a_note(classes):
    (classes / "README.md").write_text("about")
    (classes / "cat" / "list.csv").write_text("a,b")
    (classes / ".DS_Store").write_text("hidden")
    os.mkfifo(classes / "cat" / "pipe.png")  # opening it would hang
    (classes / "dog" / "link.png").symlink_to(classes / "cat" / "pipe.png")
    source, notes = open_images(classes, labels=("Blue_Bird", "cat", "dog"))
    assert len(source) == 4
    assert notes == [f"ignored what isn't a JPEG or PNG image in {classes}: 2 .png, 1 .md, 1 .csv"]


def test_other_files_are_counted_by_extension_the_most_frequent_first(classes, tmp_path):
    names = ("Thumbs.db", "a.webp", "b.WEBP", "a.bmp", "a.gif", "LICENSE", "b.gif", "c.webp", "a.tiff")
    for name in names:
        (classes / "cat" / name).touch()
    counts = "3 .webp, 2 .gif, 1 LICENSE, 1 .db, 1 .bmp, …"
    _, notes = open_images(classes)
    assert notes[0] == f"ignored what isn't a JPEG or PNG image in {classes}: {counts}"
    for name in names:
        (tmp_path / "none" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "none" / name).touch()
    with pytest.raises(UsageError, match=f"got .*none without any, but {re.escape(counts)}"):
        open_images(tmp_path / "none")


def test_images_beside_class_folders_are_refused(classes):
    write(classes / "stray.png")
    with pytest.raises(UsageError, match="either images or class folders, got both.*stray.png.*Blue_Bird"):
        open_images(classes)


def test_folders_below_classes_are_refused(classes):
    write(classes / "cat" / "small" / "a.png")
    (classes / "cat" / "c.jpg").unlink()
    with pytest.raises(UsageError, match="got a folder in a class: .*cat/small"):
        open_images(classes)


def test_missing_and_empty_folders_and_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="got '.*nowhere': No such file or directory"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="expected a folder with JPEG or PNG images, got .* without any"):
        open_images(tmp_path)
    write(tmp_path / "a.png")
    with pytest.raises(UsageError, match="got '.*a.png': Not a directory"):
        open_images(tmp_path / "a.png")


def test_a_name_that_is_not_utf8_can_be_read_and_written_down(tmp_path):
    write(tmp_path / "a" / "a.png")
    os.rename(tmp_path / "a" / "a.png", os.fsencode(tmp_path) + b"/a/caf\xe9.png")
    os.rename(tmp_path / "a", os.fsencode(tmp_path) + b"/caf\xe9")
    source, _ = open_images(tmp_path, num_logits=1)
    shown = "caf\N{REPLACEMENT CHARACTER}"
    assert (source[0].name, source.class_names) == (f"{shown}/{shown}.png", (shown,))


def test_fewer_images_are_spread_evenly_over_the_classes(tmp_path):
    for index in range(12):
        write(tmp_path / "abc"[index // 4] / f"{index:02d}.png")
    for count, expected in ((3, [0, 4, 8]), (5, [0, 2, 4, 7, 9]), (12, list(range(12)))):
        source, _ = open_images(tmp_path, num_images=count)
        assert [int(Path(image.name).stem) for image in source] == expected
        assert source.class_names == ("a", "b", "c")
        assert source.description == f"{count} of 12 images of folder {tmp_path}"


def test_more_images_than_there_are_is_refused(classes):
    with pytest.raises(UsageError, match="num_images must be at most the 4 images of folder .*, got 5"):
        open_images(classes, num_images=5)


def test_sixteen_threads_read_the_same_as_one(tmp_path):
    for index in range(48):
        write(tmp_path / f"{index:02d}.jpg", color=(index, 2 * index, 3 * index), size=(40, 30))
    source, _ = open_images(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(source.__getitem__, [*range(48)] * 4))
    for image, expected in zip(read, [*source] * 4, strict=True):
        assert image.name == expected.name
        np.testing.assert_array_equal(image.pixels, expected.pixels)
