"""Properties: any bytes are an image of the right shape or an UnreadableImage; any names of folders are labels."""

import contextlib
import io
import os
import tempfile

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image as PillowImage

from cambrian.commands.images import UnreadableImage, open_source
from cambrian.commands.images.decode import decode_image
from cambrian.commands.images.labels import number_classes
from cambrian.sharding import Preprocessing, UsageError
from strategies import BOUNDED, mutated

PREPROCESSING = Preprocessing((8, 8), (8, 8))
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.from_regex(r"[0-9²٣.+-]{1,9}", fullmatch=True),
    st.binary(min_size=1, max_size=40).map(os.fsdecode),  # a name need not be UTF-8
).filter(lambda name: name not in (".", "..") and not {"/", "\0"} & set(name))


def image_file(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(256, size=(20, 16, 3), dtype=np.uint8)
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def as_utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def check_image(content: bytes) -> None:
    with contextlib.suppress(UnreadableImage):
        pixels = decode_image(io.BytesIO(content), "image", PREPROCESSING)
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@BOUNDED
@given(data=st.data())
def test_any_damage_to_an_image(kind, data):
    check_image(data.draw(mutated(image_file(kind))))


@BOUNDED
@given(start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]), rest=st.binary(max_size=200))
def test_any_bytes_as_an_image(start, rest):
    check_image(start + rest)


@BOUNDED
@given(names=st.lists(NAMES, max_size=5, unique=True), split=NAMES)
def test_any_names_of_class_folders(names, split):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            os.mkdir(os.path.join(folder, name))
            open(os.path.join(folder, name, "a.png"), "wb").close()
        with contextlib.suppress(UsageError):
            source, _ = open_source(folder, split=split, splits_optional=True)
            shown = [name for name in names if not name.startswith(".")]
            if split in shown:
                assert len(source) == 1 and source.class_names is None
            else:
                assert len(source) == len(shown) and source.class_names is not None
                assert sorted(source.class_names) == sorted(map(as_utf8, shown))


@BOUNDED
@given(
    names=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    labels=st.lists(NAMES, max_size=5),
    num_logits=st.integers(1, 12),
)
def test_any_names_of_classes_and_labels(names, labels, num_logits):
    with contextlib.suppress(UsageError):
        numbers, known, _ = number_classes(names, tuple(labels), len(labels) or num_logits)
        assert len(numbers) == len(names) and all(0 <= number < len(known) for number in numbers)
        if not labels:
            assert [known[number] for number in numbers] == names
