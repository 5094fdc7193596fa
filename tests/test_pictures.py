"""Pictures that the caller names or holds: the library classifies each as it does the same picture in a folder."""

import io
import os

import numpy as np
import pytest
from PIL import ExifTags, Image as PillowImage

import cambrian

PREPROCESSING = cambrian.Preprocessing((8, 8), (10, 10), mean=(0.5, 0.25, 0.75), std=(0.25, 0.5, 1.0))


@pytest.fixture(scope="module")
def executable():
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    classifier = cambrian.Classifier(
        lambda params, images: images.reshape(len(images), -1) @ params, kernel, PREPROCESSING
    )
    return cambrian.compile(classifier, batch_size=4, calibrate_s=0)


@pytest.fixture
def folder(tmp_path):
    """Five pictures of other sizes than the model's, in several modes, one of them lying on its side."""
    random = np.random.default_rng(1)
    modes = {"a.png": "RGB", "b.png": "L", "c.png": "RGBA", "d.jpg": "CMYK", "e.jpg": "RGB"}
    for name, mode in modes.items():
        channels = len(PillowImage.new(mode, (1, 1)).getbands())
        pixels = random.integers(0, 256, (12, 20, channels), np.uint8)
        exif = PillowImage.Exif()
        exif[ExifTags.Base.Orientation] = 6 if name == "e.jpg" else 1
        PillowImage.fromarray(pixels.squeeze(), mode).save(tmp_path / name, exif=exif)
    return tmp_path


def opened(path):
    with PillowImage.open(path) as picture:
        picture.load()
    return picture


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_a_picture_is_classified_as_in_a_folder_whatever_holds_it(executable, folder):
    paths = sorted(folder.iterdir())
    expected = executable.classify(folder)
    forms = {
        "paths": paths,
        "names": [str(path) for path in paths],
        "bytes": [path.read_bytes() for path in paths],
        "pictures": [opened(path) for path in paths],
        "mixed": (paths[0], paths[1].read_bytes(), opened(paths[2]), memoryview(paths[3].read_bytes()), str(paths[4])),
    }
    for form, pictures in forms.items():
        got = executable.classify(pictures)
        assert [p[2:4] + p[5:] for p in got] == [p[2:4] + p[5:] for p in expected], form
    assert [p.image for p in executable.classify(paths)] == [str(path) for path in paths]
    assert [p.image for p in executable.classify(forms["bytes"])] == ["0", "1", "2", "3", "4"]
    for one in (paths[2], str(paths[2]), paths[2].read_bytes(), opened(paths[2])):
        (prediction,) = executable.classify(one)
        assert prediction[2:4] == expected[2][2:4]
    assert [p.image for p in executable.classify(paths, num_images=2)] == [str(paths[0]), str(paths[2])]
    assert executable.classify([]) == []


def test_preprocessed_pictures_are_what_the_executable_takes(executable, folder):
    pixels = executable.preprocess(folder)
    assert (pixels.shape, pixels.dtype) == ((5, 8, 8, 3), np.uint8)
    logits = executable(pixels)
    assert [p.top_indices[0] for p in executable.classify(folder)] == logits.argmax(axis=1).tolist()
    assert executable.preprocess([]).shape == (0, 8, 8, 3)


def test_pixels_are_pictures_of_any_size(executable):
    pixels = np.random.default_rng(2).integers(0, 256, (3, 12, 20, 3), np.uint8)
    encoded = []
    for each in pixels:
        PillowImage.fromarray(each).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    expected = executable.preprocess(encoded)
    np.testing.assert_array_equal(executable.preprocess(pixels), expected)
    np.testing.assert_array_equal(executable.preprocess(list(pixels)), expected)
    np.testing.assert_array_equal(executable.preprocess(pixels[0]), expected[:1])
    assert executable.preprocess(pixels[0, :, :, 0]).shape == (1, 8, 8, 3)  # grey


def test_threads_may_read_the_same_picture(executable, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (400, 600, 3), np.uint8)
    PillowImage.fromarray(pixels).save(path := tmp_path / "a.png")
    (expected,) = executable.classify(path)
    for _ in range(5):
        with PillowImage.open(path) as picture:  # which reads nothing yet
            got = executable.classify([picture] * 16, threads=4)
        assert [p.top_indices for p in got] == [expected.top_indices] * 16


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_pictures_of_16_bits_are_scaled_to_8(executable, mode):
    picture = PillowImage.frombytes(mode, (8, 8), np.full(64, 0x4D4D, np.uint16).tobytes())
    assert (executable.preprocess(picture) == 0x4D).all()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([b"no picture"], "got 0: not a JPEG or PNG file"),
        (["missing.png"], "got missing.png: .*No such file"),
        ([np.zeros((4, 4, 3), np.float32)], r"got 0: pixels must be .* uint8, got \(4, 4, 3\) float32"),
        (np.zeros((12, 20, 4), np.uint8), r"got 0: pixels must be .* uint8, got \(12, 20, 4\) uint8"),
        (np.array(7), r"got 0: pixels must be .* uint8, got \(\) int64"),
        ([7], "got 0: int instead of bytes"),
    ],
)
def test_what_is_no_picture_is_named(executable, pictures, message):
    with pytest.raises(cambrian.UnreadableImage, match=message):
        executable.classify(pictures)
    assert executable.classify(pictures, skip_bad_images=True) == []


def test_what_is_no_sequence_of_pictures_is_refused(executable):
    with pytest.raises(cambrian.UsageError, match="a folder, a picture or a sequence of pictures, got dict"):
        executable.classify({"image": b""})
    with pytest.raises(cambrian.UsageError, match="got 'absent'"):
        executable.classify("absent")
    assert not os.path.exists("absent")
