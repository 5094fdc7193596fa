"""The executable of a configuration: what its key depends on, and what happens where a precision fails the probe."""

import jax
import pytest

from cambrian import engine
from cambrian.commands.executables import cache_entry, make_executable
from cambrian.commands.flags import read_configuration
from cambrian.commands.program import resnet
from cambrian.commands.program.build import measuring_s
from cambrian.commands.program.digests import build_digest
from cambrian.models.costs import machine
from cambrian.models.costs.machine import own_table_path
from cambrian.models.execution import build_program
from cambrian.sharding import make_mesh
from command import SMALL, write_checkpoint
from flag_values import parse


def test_a_precision_left_open_is_float32_where_another_fails_the_probe(tmp_path, monkeypatch):
    monkeypatch.setattr(resnet, "precisions_of", lambda asked, platform: ["bfloat16" if asked == "auto" else asked])
    monkeypatch.setitem(build_program.TOLERANCE, "bfloat16", 1e-7)
    weights = write_checkpoint(tmp_path / "small.safetensors", SMALL)
    flags = (
        *("--weights", weights, "--image_size", "8", "--mesh", "1x2", "--batch_size", "4"),
        *("--artifact_dir", tmp_path / "cache"),
    )
    made = make_executable(read_configuration(parse(*flags)))
    assert made.executable.metadata["precision"] == "float32"
    note, *_ = made.executable.notes
    assert "precision float32 instead of a faster one" in note and "to a relative error of 1e-07" in note
    with pytest.raises(engine.ParityError, match="to a relative error of 1e-07"):
        make_executable(read_configuration(parse(*flags, "--precision", "bfloat16")))


def test_the_seconds_of_calibration_count_where_a_precision_was_not_tuned(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "SHIPPED", tmp_path)
    (path := own_table_path("cpu")).parent.mkdir(parents=True)

    def seconds(precision: str) -> float | None:
        return measuring_s(read_configuration(parse("--platform", "cpu", "--precision", precision)))

    path.write_text('{"tuned": "bfloat16"}\n')
    assert [seconds(name) for name in ("auto", "float32", "bfloat16", "int8")] == [15.0, 15.0, None, 15.0]
    path.write_text('{"tuned": "bfloat16"}\n{"tuned": "float32"}\n')
    assert [seconds(name) for name in ("auto", "float32", "bfloat16", "int8")] == [None, None, None, 15.0]


def test_what_was_tuned_counts_for_an_artefact_and_what_builds_measure_does_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (path := own_table_path("cpu")).parent.mkdir(parents=True)
    measurements, digests = '{"transition": ["loop", "1x1", 8, "float32"], "ms": 1.0}\n', [build_digest("cpu")]
    path.write_text(measurements)
    assert build_digest("cpu") == digests[0]
    for _ in range(2):  # in one precision, and another network in the same
        path.write_text(path.read_text() + '{"tuned": "float32"}\n')
        digests.append(build_digest("cpu"))
        path.write_text(path.read_text() + measurements)
        assert build_digest("cpu") == digests[-1]
    assert len(set(digests)) == 3


def test_an_artefact_belongs_to_a_number_of_threads(monkeypatch):
    configuration = read_configuration(parse("--platform", "cpu", "--mesh", "1x1"))
    keys = set()
    for threads in ("1", "2"):
        monkeypatch.setenv("PJRT_NPROC", threads)
        keys.add(cache_entry(configuration, make_mesh(configuration.mesh, jax.devices()))[1])
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cambrian.engine.artifact.fingerprint.cpu_model", lambda: "another one"),
        ("cambrian.engine.artifact.fingerprint.cpu_features", lambda: frozenset({"sse2"})),
        ("jaxlib.version.__version__", "0"),
    ],
)
def test_an_artefact_belongs_to_a_kind_of_machine_and_a_version_of_jaxlib(monkeypatch, place, value):
    configuration = read_configuration(parse("--platform", "cpu", "--mesh", "1x1"))

    def key() -> str:
        return cache_entry(configuration, make_mesh(configuration.mesh, jax.devices()))[1]

    here = key()
    assert key() == here
    monkeypatch.setattr(place, value)
    assert key() != here
