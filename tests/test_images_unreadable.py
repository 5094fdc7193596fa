"""Pictures that can't be read, and errors that say nothing of the picture."""

import errno
import os

import numpy as np
import pytest
from PIL import Image as PillowImage

from cambrian.commands.images import UnreadableImage
from cambrian.commands.images.file_system import RemoteFiles
from cambrian.commands.images.folder import FolderSource
from image_cases import SIZE, open_images, write


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
