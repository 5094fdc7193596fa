"""CIFAR-10, downloaded from a server that the test runs and prepared without TensorFlow."""

import functools
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import image_cases
from cambrian.commands.images import choose_data, cifar10_archive
from cambrian.commands.images.prepared import find_prepared
from cambrian.sharding import Preprocessing, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
UNCHANGED = Preprocessing((32, 32), (32, 32))
open_images = functools.partial(image_cases.open_images, "cifar10", preprocessing=UNCHANGED, num_logits=10)
NUM_IN_FILE = {**{f"data_batch_{number}.bin": 3 for number in range(1, 6)}, "test_batch.bin": 12}


def pixels_of(file, index):
    return np.random.default_rng((len(file), index)).integers(256, size=(32, 32, 3), dtype=np.uint8)


def write_archive(path):
    """An archive in the official layout: per image a label, then its red, green and blue planes."""
    with tarfile.open(path, "w:gz") as tar:
        content = {"batches.meta.txt": "\n".join([*CLASSES, "", ""]).encode()}
        for file, count in NUM_IN_FILE.items():
            images = ((index % 10, pixels_of(file, index)) for index in range(count))
            content[file] = b"".join(bytes([label]) + pixels.transpose(2, 0, 1).tobytes() for label, pixels in images)
        for file, data in content.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


class Server(NamedTuple):
    url: str
    archive: Path
    archive_sha256: str


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    archive = folder / "cifar-10-binary.tar.gz"
    write_archive(archive)
    handler = functools.partial(QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        yield Server(f"http://127.0.0.1:{server.server_port}", archive, digest)
        server.shutdown()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


@pytest.fixture(autouse=True)
def environment(server, data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(cifar10_archive, "ARCHIVE_URL", f"{server.url}/cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar10_archive, "ARCHIVE_SHA256", server.archive_sha256)


def test_images_labels_and_names_are_those_of_the_archive():
    source, notes = open_images(labels=CLASSES)
    assert (source.class_names, notes) == (CLASSES, [])
    images = {image.name: image for image in source}
    assert sorted(images) == [f"test_{index:05d}" for index in range(12)]
    for index in range(12):
        image = images[f"test_{index:05d}"]
        assert image.label == index % 10
        np.testing.assert_array_equal(image.pixels, pixels_of("test_batch.bin", index))


def test_the_train_split_joins_five_files():
    source, _ = open_images(split="train")
    images = {image.name: image for image in source}
    assert sorted(images) == [f"train_{index:05d}" for index in range(15)]
    np.testing.assert_array_equal(images["train_00004"].pixels, pixels_of("data_batch_2.bin", 1))


def test_labels_are_those_of_the_weights():
    labels = tuple(reversed([name.title() for name in CLASSES]))
    source, notes = open_images(labels=labels)
    assert (source.class_names, notes) == (labels, [])
    assert {image.name: image.label for image in source}["test_00002"] == 7


def test_images_are_resized_as_the_configuration_says():
    source, _ = open_images(preprocessing=Preprocessing((56, 56), (64, 64)))
    assert source[0].pixels.shape == (56, 56, 3)


def test_prepared_cifar10_is_what_auto_takes(data_dir):
    open_images()
    assert find_prepared() == data_dir / "cifar10" / "3.0.2"
    assert choose_data(CLASSES, 10) == ("cifar10", [])


def test_sixteen_threads_read_the_same_as_one():
    source, _ = open_images()
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(source.__getitem__, [*range(12)] * 20))
    for image, expected in zip(read, [*source] * 20, strict=True):
        assert (image.name, image.label) == (expected.name, expected.label)
        np.testing.assert_array_equal(image.pixels, expected.pixels)


def test_unknown_splits_and_too_many_images_are_refused():
    with pytest.raises(UsageError, match="split of CIFAR-10 must be one of test, train, got 'validation'"):
        open_images(split="validation")
    with pytest.raises(UsageError, match="num_images must be at most the 12 images of CIFAR-10, split test, got 13"):
        open_images(num_images=13)


@pytest.mark.parametrize(
    "host, reason", [(None, "HTTP Error 404: File not found"), ("http://127.0.0.1:9", "Connection refused")]
)
def test_a_failed_download_says_how_to_get_it_otherwise(server, host, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    url = f"{host or server.url}/gone.tar.gz"
    monkeypatch.setattr(cifar10_archive, "ARCHIVE_URL", url)
    with pytest.raises(UsageError) as raised:
        open_images()
    message = str(raised.value)
    assert message.startswith(f"expected CIFAR-10 from {url}, or that file as {tmp_path}/downloads/gone.tar.gz, got: ")
    assert reason in message and "\n" not in message
    assert find_prepared() is None
    assert not [*tmp_path.glob("downloads/*.gz")]


def test_an_archive_put_in_place_by_hand_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(cifar10_archive, "ARCHIVE_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    (tmp_path / "downloads").mkdir()
    shutil.copy(server.archive, tmp_path / "downloads")
    assert len(open_images()[0]) == 12


@pytest.mark.parametrize("by_hand", [True, False])
def test_an_archive_that_is_not_the_published_one_is_refused(server, by_hand, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(cifar10_archive, "ARCHIVE_SHA256", "0" * 64)
    if by_hand:
        (tmp_path / "downloads").mkdir()
        shutil.copy(server.archive, tmp_path / "downloads")
    with pytest.raises(UsageError, match=f"must have the SHA-256 0000.*, got {server.archive_sha256}"):
        open_images()
    assert (tmp_path / "downloads" / server.archive.name).exists() == by_hand
    assert find_prepared() is None


def test_a_data_dir_that_is_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=f"got {tmp_path}/file: "):
        open_images()


def test_another_file_format_is_not_taken_for_readable(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "cifar10", "fileFormat": "tfrecord"}))
    assert find_prepared() is None
    assert choose_data(CLASSES, 10)[0] == "cifar10_sample"
    with pytest.raises(UsageError, match=f"must be prepared as array_record, got tfrecord in {folder}"):
        open_images()


def test_the_newest_prepared_version_is_taken_and_a_damaged_one_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("3.0.2", "incomplete.A1_3.0.11", "3.0.10"):
        folder = tmp_path / "cifar10" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "array_record"}))
    assert find_prepared() == tmp_path / "cifar10" / "3.0.10"
    for damaged in ("{", "null", "[" * 100_000):
        (folder / "dataset_info.json").write_text(damaged)
        with pytest.raises(UsageError, match="3.0.10/dataset_info.json"):
            find_prepared()


@pytest.mark.slow
def test_tensorflow_is_never_imported_even_where_it_is_installed(server, tmp_path):
    stand_in = tmp_path / "packages" / "tensorflow"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    script = f"""
import sys
from cambrian.commands.images import cifar10_archive, for_model, open_source
from cambrian.sharding import Preprocessing
cifar10_archive.ARCHIVE_URL = "{server.url}/cifar-10-binary.tar.gz"
cifar10_archive.ARCHIVE_SHA256 = "{server.archive_sha256}"
images, _ = for_model(open_source("cifar10")[0], Preprocessing((32, 32), (32, 32)), (), 10)
print(len([*images]), "tensorflow_datasets" in sys.modules, "tensorflow" in sys.modules)
import tensorflow
"""
    environment = {
        "TFDS_DATA_DIR": str(tmp_path / "data"),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": ":".join([str(stand_in.parent), *sys.path]),
    }
    result = subprocess.run(
        [sys.executable, "-c", script], check=False, env=environment, capture_output=True, text=True
    )
    assert (result.stdout, result.returncode) == ("12 True False\n", 0), result.stderr
