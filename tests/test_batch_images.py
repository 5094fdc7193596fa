"""What batch jobs read and load, in this process: parts of folders and Parquet files, artefacts, the Classifier."""

import dataclasses
import io
import os
import pickle
import re
import tempfile
import types

import jax
import numpy as np
import pytest
from PIL import Image

import cambrian
from cambrian.commands.batch.parts import ParquetRows, make_parts, open_images
from cambrian.commands.images import open_source
from cambrian.commands.images.folder import FolderSource
from cambrian.sharding import Preprocessing, UsageError
from cambrian.sharding.host import core_reservation, host, reserve_cores
from command import LABELS, write_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
SIZE = Preprocessing((8, 8), (8, 8))
NAMES = [f"{label}/{index}.png" for label in LABELS[:3] for index in range(7)]


@pytest.fixture(scope="module")
def executable():
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    classifier = cambrian.Classifier(lambda params, images: images.reshape(-1, 192) @ params, kernel, SIZE, LABELS)
    return cambrian.compile(classifier, mesh="1x1", batch_size=4, platform="cpu", name="linear")


@pytest.fixture(scope="module")
def artifact(executable, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    executable.save(folder / "artifact", signing_key=folder / "key")
    return folder / "artifact"


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def test_the_parts_of_a_folder_hold_each_image_once_and_are_the_same_each_time(tmp_path):
    write_images(tmp_path, NAMES)
    images, _ = open_images(str(tmp_path), "test")
    parts = make_parts(images, 4)
    assert [len(part) for part in parts] == [8, 8, 5]  # √21 in whole batches
    assert parts == make_parts(open_images(str(tmp_path), "test")[0], 4)
    source, _ = open_source(str(tmp_path))
    of_uri, _ = open_images(tmp_path.as_uri(), "test")
    for parts_of in (parts, make_parts(of_uri, 4)):
        read = [
            part.images.read(index, SIZE) for part in pickle.loads(pickle.dumps(parts_of)) for index in range(len(part))
        ]
        for index, image in enumerate(read):
            expected = source.read(index, SIZE)
            assert (image.name, image.label) == (expected.name, expected.label)
            np.testing.assert_array_equal(image.pixels, expected.pixels)
        assert len(read) == len(NAMES)
    os.remove(tmp_path / NAMES[0])
    assert not {part.name for part in make_parts(open_images(str(tmp_path), "test")[0], 4)} & {
        part.name for part in parts
    }


@pytest.mark.parametrize("as_struct", [False, True])
def test_the_parts_of_parquet_files_are_whole_row_groups(tmp_path, as_struct):
    pixels = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
    values = [png(image) for image in pixels]
    column = [{"bytes": value, "path": None} for value in values] if as_struct else values
    for name, rows in (("a", column[:11]), ("b", column[11:])):
        table = pa.table({"number": range(len(rows)), "img": rows})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
    images, notes = open_images(str(tmp_path), "test")
    parts = make_parts(images, 2)
    assert (len(images), notes, [len(part) for part in parts]) == (20, [], [6, 8, 6])
    read = [pickle.loads(pickle.dumps(part)).images.read_images() for part in parts]
    names = [name for source in read for name in source.names]
    assert names == [f"a.parquet:{row}" for row in range(11)] + [f"b.parquet:{row}" for row in range(9)]
    for source, start in zip(read, (0, 6, 14), strict=True):
        for index in range(len(source)):
            np.testing.assert_array_equal(source.read(index, SIZE).pixels, pixels[start + index])
    assert len(open_images(str(tmp_path / "b.parquet"), "test")[0]) == 9


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_every_kind_of_bytes_is_an_image(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(256, size=(2, 8, 8, 3), dtype=np.uint8)
    values = pa.array([*map(png, pixels), None], kind)
    pq.write_table(pa.table({"image.old": pa.array([b"", b"", b""]), "image": values}), tmp_path / "a.parquet")
    images, _ = open_images(str(tmp_path / "a.parquet"), "test")
    assert isinstance(images, ParquetRows)
    assert images.description == f"Parquet file {tmp_path / 'a.parquet'}"
    read = images.read_images()
    for index in range(2):
        np.testing.assert_array_equal(read.read(index, SIZE).pixels, pixels[index])
    with pytest.raises(cambrian.UnreadableImage, match="a.parquet:2: no value instead of bytes"):
        read.read(2, SIZE)


def test_what_lies_beside_parquet_files_is_named(tmp_path):
    for name in ("a.parquet", "b.parquet", "more/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [b""]}), tmp_path / name)
    for name in ("1.jpg", "2.jpg", "_SUCCESS", ".b.parquet.crc"):
        (tmp_path / name).touch()
    images, notes = open_images(str(tmp_path), "test")
    assert len(images) == 2
    assert notes == [f"ignored what isn't a Parquet file in {tmp_path}: 2 .jpg, 1 more"]


def test_a_damaged_row_group_is_named(tmp_path):
    pq.write_table(pa.table({"image": [bytes(1000)]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[8:60] = bytes(52)
    (tmp_path / "a.parquet").write_bytes(content)
    images, _ = open_images(str(tmp_path), "test")
    assert isinstance(images, ParquetRows)
    with pytest.raises(OSError, match="a.parquet, row group 0: "):
        images.read_images()


def test_names_of_files_and_folders_needn_t_be_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xff")
    write_images(folder, [os.fsdecode(b"\xfe.png"), "b.png"])
    images, _ = open_images(str(folder), "test")
    assert isinstance(images, FolderSource)
    assert [images.read(index, SIZE).name for index in range(2)] == ["b.png", "\ufffd.png"]
    assert [len(part) for part in make_parts(images, 4)] == [2]


def test_data_that_makes_no_sense_is_refused(tmp_path, monkeypatch):
    for name in ("empty", "none", "two", "rowless"):
        (tmp_path / name).mkdir()
    (tmp_path / "text").write_text("no data")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 no data")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "none" / "a.parquet")
    pq.write_table(pa.table({"left": [b""], "right": [b""]}), tmp_path / "two" / "a.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "rowless" / "a.parquet")
    for data, message in {
        "empty": "expected a folder with JPEG or PNG images, got ",
        "none": "must have a column `image`, or a single one, of binary values or of structs with `bytes`, got ",
        "two": "with left (binary), right (binary)",
        "rowless": "expected Parquet files with rows, got none in ",
        "text": "data must be a folder, or a file that ends in .parquet, got ",
        "damaged.parquet": "data must be readable Parquet files, got ",
        "absent": "no such file or folder",
        "none/../absent": "no such file or folder",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            open_images(str(tmp_path / data), "test")
    with pytest.raises(UsageError, match="Unrecognized filesystem type"):
        open_images("nowhere://bucket/folder", "test")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="got '': no such file or folder"):
        open_images("", "test")

    def from_uri(uri):
        raise ImportError("Install huggingface_hub")

    monkeypatch.setattr("pyarrow.fs.FileSystem", types.SimpleNamespace(from_uri=from_uri))
    with pytest.raises(UsageError, match="got 'hf://datasets/mine': Install huggingface_hub"):
        open_images("hf://datasets/mine", "test")


def test_a_classifier_takes_batches_of_any_size_and_any_form(executable, artifact):
    pytest.importorskip("ray")
    classifier = cambrian.ray.Classifier(artifact, signing_key=artifact.parent / "key")
    pixels = np.random.default_rng(1).integers(256, size=(13, 8, 8, 3), dtype=np.uint8)
    forms = np.empty(13, object)
    forms[:] = [
        (image, png(image), {"bytes": png(image)}, b"no picture")[index % 4] for index, image in enumerate(pixels)
    ]
    expected = jax.nn.softmax(executable(pixels), axis=1)
    columns = classifier({"image": forms, "id": np.arange(13)})
    assert list(columns) == ["id", "predicted", "probability", "top5", "error"]
    result = {name: column.tolist() for name, column in columns.items()}
    for index in range(13):
        if index % 4 == 3:
            assert (result["predicted"][index], result["error"][index]) == (None, "not a JPEG or PNG file")
            continue
        order = np.argsort(-expected[index])[:5]
        assert result["error"][index] is None and result["predicted"][index] == LABELS[order[0]]
        assert [entry["index"] for entry in result["top5"][index]] == order.tolist()
        assert result["probability"][index] == pytest.approx(float(expected[index, order[0]]), rel=1e-5)
    assert (
        len(classifier({"image": pixels})["predicted"]) == 13 and len(classifier({"image": pixels[:0]})["error"]) == 0
    )
    with pytest.raises(UsageError, match="each batch must have the column 'image', got id"):
        classifier({"id": np.arange(2)})


def test_a_classifiers_batches_have_the_same_types_whether_all_images_or_none_can_be_read(artifact):
    pytest.importorskip("ray")
    from ray.data.block import BlockAccessor  # pyright: ignore[reportMissingImports]

    classifier = cambrian.ray.Classifier(artifact, signing_key=artifact.parent / "key")
    readable, unreadable = np.zeros((2, 8, 8, 3), np.uint8), np.array([b"no picture", None], object)
    blocks = [BlockAccessor.batch_to_block(classifier({"image": images})) for images in (readable, unreadable)]
    assert blocks[0].schema == blocks[1].schema
    assert pa.concat_tables(blocks)["error"].null_count == 2


def test_an_artifact_comes_through_the_object_store_where_its_path_is_not_seen(artifact, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda value: value)
    shipped = cambrian.ray.ship(artifact)
    elsewhere = dataclasses.replace(shipped, path=str(tmp_path / "absent"))
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for each in (shipped, elsewhere):
        executable = each.load(artifact.parent / "key")
        assert executable.kind == "native" and executable(images).shape == (3, 10)
    with pytest.raises(UsageError, match="artifact must be a directory that every worker sees, got "):
        dataclasses.replace(elsewhere, files=None).load()
    with pytest.raises(UsageError, match="an artefact must be a directory with a manifest.json"):
        cambrian.ray.ship(tmp_path / "absent")


def test_cores_are_reserved_once(monkeypatch, tmp_path):
    chosen = []
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: chosen.append(set(cores)), raising=False)
    monkeypatch.setattr(core_reservation, "_held", held := [])
    assert not reserve_cores(1) and not chosen  # not permitted
    host.permit("core_affinity")
    monkeypatch.setattr(host, "_changes", {})
    try:
        # Locks of one process exclude each other, as those of two do.
        assert reserve_cores(2) and set(map(frozenset, chosen)) == {frozenset({4, 5})}
        assert not reserve_cores(2)
        assert reserve_cores(1) and chosen[-1] == {6}
    finally:
        for descriptor in held:
            os.close(descriptor)
