"""Folders of images: their layouts, the matching of their classes, decoding, and bad input."""

import errno
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage, ImageOps

from cambrian.commands.images import UnreadableImage, for_model, open_source
from cambrian.commands.images.file_system import RemoteFiles
from cambrian.commands.images.folder import FolderSource
from cambrian.commands.images.labels import find_labels
from cambrian.sharding import Preprocessing, UsageError

SIZE = Preprocessing((8, 8), (8, 8))


def open_images(folder, *, labels=(), num_logits=3, **arguments):
    source, notes = open_source(str(folder), **arguments)
    images, more_notes = for_model(source, SIZE, labels, num_logits)
    return images, [*notes, *more_notes]


def write(path, color=(10, 20, 30), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.new(mode, size, color).save(path, **options)


def names_and_labels(source):
    return [(image.name, image.label) for image in source]


@pytest.fixture
def classes(tmp_path):
    for name in ("dog/b.PNG", "dog/a.jpeg", "cat/c.jpg", "Blue_Bird/d.png"):
        write(tmp_path / name)
    return tmp_path


# Layouts


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
    assert notes == [f"ignored what isn't a JPEG or PNG image in {classes}: 4 files, such as README.md"]


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


# Classes and the weights' labels


def test_classes_are_matched_to_labels_by_name(classes):
    labels = ("dog", "frog", "Cat", "blue bird")
    source, notes = open_images(classes, labels=labels)
    assert [image.label for image in source] == [3, 2, 0, 0]
    assert (source.class_names, notes) == (labels, [])


def test_labels_are_compared_by_their_closest_form():
    labels = ("n02012849 crane", "n03126707 crane, derrick", "n01440764 tench, Tinca tinca", "maillot", "maillot, suit")
    names = ("crane", "derrick", "tinca_TINCA", "n03126707", "n01440764 tench, Tinca tinca", "Maillot", "suit")
    assert find_labels(names, labels) == [0, 1, 2, 1, 2, 3, 4]
    assert find_labels(("blue bird", "Blue-Bird", "_"), ("blue_bird", "BlueBird", "-")) == [None, None, None]
    assert find_labels(("BlueBird",), ("blue_bird", "BlueBird")) == [1]


def test_fewer_classes_than_labels_keep_their_logits(classes):
    labels = ("ant", "dog", "bee", "cat", "blue bird")
    source, notes = open_images(classes, labels=labels, num_logits=5)
    assert [image.label for image in source] == [4, 3, 1, 1]
    assert (source.class_names, notes) == (labels, [])


@pytest.mark.parametrize("labels", [("dog", "cat", "tree"), ("dog", "cat", "blue bird", "blue-bird"), ("a", "b", "c")])
def test_a_class_that_is_not_exactly_one_label_is_refused_with_the_closest(classes, labels):
    with pytest.raises(UsageError, match=f"exactly one of the model's {len(labels)} labels, got 'Blue_Bird'"):
        open_images(classes, labels=labels)


def test_mismatched_classes_are_listed_with_the_closest_labels(tmp_path):
    for name in ("aeroplane", "cat", "trucks", "n01440764"):
        write(tmp_path / name / "a.png")
    expected = (
        "each class must be exactly one of the model's 3 labels, got 'aeroplane' (closest: 'airplane'), "
        "'n01440764' (closest: "
    )
    with pytest.raises(UsageError, match=re.escape(expected)) as raised:
        open_images(tmp_path, labels=("airplane", "cat", "truck"))
    message = str(raised.value)
    assert (
        "'trucks' (closest: 'truck')" in message
        and "; the labels come without WordNet ids; the images of one folder" in message
    )


def test_folders_named_by_numbers_are_sorted_as_numbers(tmp_path):
    for number in range(11):
        write(tmp_path / str(number) / "a.png")
    source, _ = open_images(tmp_path, num_logits=11)
    assert names_and_labels(source) == [(f"{number}/a.png", number) for number in range(11)]


def test_numbers_name_the_logits_of_a_model_without_labels(tmp_path):
    for number in ("2", "007", "10"):
        write(tmp_path / number / "a.png")
    source, notes = open_images(tmp_path, num_logits=11)
    assert names_and_labels(source) == [("2/a.png", 2), ("007/a.png", 7), ("10/a.png", 10)]
    assert source.class_names == ("0", "1", "2", "3", "4", "5", "6", "007", "8", "9", "10")
    assert notes == [
        "the folders' numbers are taken to be those of the logits; torchvision's ImageFolder orders them as text"
    ]


def test_numbers_that_sort_as_text_need_no_note(tmp_path):
    for number in ("0", "1", "2"):
        write(tmp_path / number / "a.png")
    assert open_images(tmp_path)[1] == []


def test_a_class_may_be_named_as_a_split_is(tmp_path):
    for name in ("bus/a.png", "car/b.png", "train/c.png"):
        write(tmp_path / name)
    source, _ = open_images(tmp_path, split="train")
    assert names_and_labels(source) == [("bus/a.png", 0), ("car/b.png", 1), ("train/c.png", 2)]
    write(tmp_path / "splits" / "train" / "cat" / "d.png")
    write(tmp_path / "splits" / "extra" / "cat" / "e.png")
    assert names_and_labels(open_images(tmp_path / "splits", split="train")[0]) == [("cat/d.png", 0)]


def test_classes_that_number_no_logits_give_no_accuracy(tmp_path):
    for number in ("1", "10"):
        write(tmp_path / "numbers" / number / "a.png")
        write(tmp_path / "names" / f"class {number}" / "a.png")
    for folder in (tmp_path / "numbers", tmp_path / "names"):
        source, notes = open_images(folder, num_logits=10)
        assert [image.label for image in source] == [0, 1] and len(source.class_names or ()) == 2
        assert notes == ["no accuracy: the model has 10 logits without labels, the data 2 classes"]


# Number of images


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


# Decoding


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, pixels)


@pytest.mark.parametrize(
    "mode, color, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (1, 2, 3, 128), (1, 2, 3)),
        ("I;16", 0x4D00, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_any_mode_becomes_rgb(tmp_path, mode, color, expected):
    write(tmp_path / "a.png", color, mode=mode)
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, np.full((8, 8, 3), expected, np.uint8))


def test_a_palette_with_transparency_and_a_cmyk_jpeg_become_rgb(tmp_path):
    palette = PillowImage.new("RGB", (8, 8), (9, 8, 7)).convert("P", palette=PillowImage.Palette.ADAPTIVE)
    palette.save(tmp_path / "a.png", transparency=b"\x80")
    write(tmp_path / "b.jpg", (0, 0, 0, 255), mode="CMYK")
    source, _ = open_images(tmp_path)
    np.testing.assert_array_equal(source[0].pixels, np.full((8, 8, 3), (9, 8, 7), np.uint8))
    np.testing.assert_array_equal(source[1].pixels, np.zeros((8, 8, 3), np.uint8))


def test_exif_orientation_is_respected(tmp_path):
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = 255
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the stored top is the right side
    PillowImage.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, np.rot90(stored, k=-1))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_pillow_s(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    PillowImage.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with PillowImage.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(open_images(tmp_path)[0][0].pixels, expected)


def test_exif_that_can_not_be_written_again_turns_the_picture_all_the_same(tmp_path):
    tags = struct.pack("<HHLHH", 0x112, 3, 1, 6, 0) + struct.pack("<HHL", 0x100, 2, 4) + b"abc\0"  # a width of letters
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + tags + bytes(4)
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = 255
    PillowImage.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=100)
    turned = open_images(tmp_path)[0][0].pixels
    assert turned[:, 4:].min() > 250 and turned[:, :4].max() < 5


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("exif", [b"", b"nonsense", b"MM"])
def test_a_picture_with_malformed_exif_data_is_upright(tmp_path, suffix, exif):
    PillowImage.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    pixels = open_images(tmp_path)[0][0].pixels
    assert np.abs(pixels - np.array([200.0, 100.0, 50.0])).max() < 5


# Unreadable images


def test_a_text_file_named_jpg_is_an_error_that_names_it(classes):
    (classes / "cat" / "d.jpg").write_text("no image")
    source, _ = open_images(classes)
    with pytest.raises(UnreadableImage) as raised:
        source[2]
    path = str(classes / "cat" / "d.jpg")
    assert (raised.value.name, raised.value.reason) == (path, "not a JPEG or PNG file")
    assert str(raised.value) == f"expected a readable JPEG or PNG image, got {path}: not a JPEG or PNG file"
    assert source[1].name == "cat/c.jpg"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.6, 0.95])
def test_truncated_images_are_errors(tmp_path, suffix, kept):
    path = tmp_path / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    PillowImage.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableImage, match=path.name):
        open_images(tmp_path)[0][0]


def test_a_damaged_png_and_a_vanished_file_are_errors(tmp_path):
    write(tmp_path / "a.png", size=(64, 64))
    write(tmp_path / "b.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    source, _ = open_images(tmp_path)
    (tmp_path / "b.png").unlink()
    for index, name in enumerate(("a.png", "b.png")):
        with pytest.raises(UnreadableImage, match=name):
            source[index]


def test_a_broken_link_is_an_error_that_names_it(classes):
    (classes / "cat" / "d.png").symlink_to(classes / "gone.png")
    (classes / "cat" / "e.png").symlink_to(classes / "cat" / "e.png")
    source, _ = open_images(classes)
    for index, name in ((2, "d.png"), (3, "e.png")):
        with pytest.raises(UnreadableImage, match=str(classes / "cat" / name)):
            source[index]


class Failing:
    """A file system of pyarrow, or a module of Pillow, that can open nothing."""

    def __init__(self, error):
        self.error = error

    def open_input_file(self, path):
        raise self.error

    def open(self, *_, **__):
        raise self.error


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ELOOP])
def test_a_file_that_cannot_be_opened_is_an_unreadable_image(classes, monkeypatch, number):
    failing = Failing(OSError(number, os.strerror(number)))
    with pytest.raises(UnreadableImage, match=os.strerror(number)):
        FolderSource("bucket", (("a.png", None),), None, RemoteFiles(failing)).read(0, SIZE)
    source, _ = open_images(classes)
    monkeypatch.setattr(PillowImage, "open", failing.open)
    with pytest.raises(UnreadableImage, match=os.strerror(number)):
        source[0]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_an_error_that_may_pass_says_nothing_of_the_image(classes, monkeypatch, number):
    failing = Failing(OSError(number, os.strerror(number)))
    with pytest.raises(OSError, match=os.strerror(number)):
        FolderSource("bucket", (("a.png", None),), None, RemoteFiles(failing)).read(0, SIZE)
    source, _ = open_images(classes)
    monkeypatch.setattr(PillowImage, "open", failing.open)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '.*/d\.png'") as raised:
        source[0]
    assert raised.value.errno == number


def test_an_error_of_a_remote_file_system_without_a_number_says_nothing_of_the_image():
    files = RemoteFiles(Failing(OSError("AWS Error NETWORK_CONNECTION during GetObject: Timeout was reached")))
    with pytest.raises(OSError, match="AWS Error NETWORK_CONNECTION"):
        FolderSource("bucket", (("a.png", None),), None, files).read(0, SIZE)


def test_an_image_that_a_remote_file_system_refuses_is_unreadable():
    files = RemoteFiles(Failing(OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")))
    with pytest.raises(UnreadableImage, match="ACCESS_DENIED"):
        FolderSource("bucket", (("a.png", None),), None, files).read(0, SIZE)


# Threads


def test_sixteen_threads_read_the_same_as_one(tmp_path):
    for index in range(48):
        write(tmp_path / f"{index:02d}.jpg", color=(index, 2 * index, 3 * index), size=(40, 30))
    source, _ = open_images(tmp_path)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(source.__getitem__, [*range(48)] * 4))
    for image, expected in zip(read, [*source] * 4, strict=True):
        assert image.name == expected.name
        np.testing.assert_array_equal(image.pixels, expected.pixels)
