"""A start that finds the note of a passed probe checks a part of it with its first inputs; nothing wrong gets out."""

import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cambrian import engine
from cambrian.commands.run.classify import _batches
from cambrian.engine.artifact import load as load_module
from cambrian.engine.artifact.fingerprint import fingerprint
from cambrian.engine.artifact.verification import VERIFICATION
from cambrian.engine.errors import ParityError
from cambrian.engine.runtime.deferred_probe import DeferredProbe
from cambrian.sharding import MeshShape, UsageError
from toy_program import toy_program

OWN = [0, 3, 4, 7]  # one place of each data group, on the group's devices in turn
IMAGES = np.random.default_rng(3).integers(0, 256, (20, 8, 8, 3), np.uint8)


def start(artifact, key):
    return engine.load(artifact, signing_key=key, defer_probe=True)


@pytest.fixture
def noted(artifact, key):
    """An artefact whose probe this machine has passed."""
    executable = start(artifact, key)
    assert executable.probe is None
    assert start(artifact, key).parity == executable.parity is not None
    return artifact


def without_reference(executable, place):
    """The executable with another reference for the probe's sample at one place of the batch."""
    probe = executable.probe
    reference = probe._reference.copy()
    reference[place] += 1.0
    wrong = DeferredProbe(MeshShape(2, 4), probe._inputs, reference, probe._tolerance)
    return dataclasses.replace(executable, probe=wrong)


def test_the_first_launch_holds_inputs_and_probe(noted, key):
    executable, expected = start(noted, key), toy_program().reference(IMAGES)
    assert executable.probe is not None and executable.probe.room == 4
    outputs = list(executable.stream([IMAGES[:3], IMAGES[3:11], IMAGES[11:19]], threads=3))
    np.testing.assert_allclose(np.concatenate(outputs), expected[:19], rtol=1e-4, atol=1e-4)
    parity = executable.probe.parity
    assert parity is not None and parity.max_relative_error < 1e-5 and executable.pending_probe is None


@pytest.mark.parametrize("num_inputs", [4, 5])  # as many as have room, and one more: then the probe runs alone
def test_any_number_of_first_inputs(noted, key, num_inputs):
    executable = start(noted, key)
    (outputs,) = executable.stream([IMAGES[:num_inputs]])
    np.testing.assert_allclose(outputs, toy_program().reference(IMAGES[:num_inputs]), rtol=1e-4, atol=1e-4)
    assert executable.probe is not None and executable.pending_probe is None


@pytest.mark.parametrize("place", OWN)
def test_no_output_leaves_before_the_sample_of_each_group_has_passed(noted, key, place):
    executable = without_reference(start(noted, key), place)
    received = []
    with pytest.raises(ParityError, match="got"):
        received += executable.stream([IMAGES[:4], IMAGES[4:12]], threads=2)
    assert not received


@pytest.mark.parametrize(
    ("num_images", "first", "is_pending"), [(4, 4, True), (5, 8, False), (8, 8, False), (12, 4, True)]
)
def test_a_probe_that_would_add_a_launch_runs_before_the_first_batch(noted, key, num_images, first, is_pending):
    executable = start(noted, key)
    assert len(next(_batches(num_images, executable)).indices) == min(first, num_images)
    assert (executable.pending_probe is not None) == is_pending


def test_no_batch_follows_a_probe_that_fails(noted, key):
    with pytest.raises(ParityError):
        next(_batches(8, without_reference(start(noted, key), 1)))


def test_first_inputs_of_another_shape_are_refused(noted, key):
    with pytest.raises(UsageError, match="inputs must have shape"):
        list(start(noted, key).stream([IMAGES[:4, :1, :1]]))


def test_places_without_inputs_are_checked_too(noted, key):
    list(without_reference(start(noted, key), 6).stream([IMAGES[:4]]))  # an input takes place 6
    with pytest.raises(ParityError):
        list(without_reference(start(noted, key), 6).stream([IMAGES[:3]]))


def test_a_call_runs_the_whole_probe_first(noted, key):
    with pytest.raises(ParityError):
        without_reference(start(noted, key), 1)(IMAGES)
    executable = start(noted, key)
    np.testing.assert_allclose(executable(IMAGES), toy_program().reference(IMAGES), rtol=1e-4, atol=1e-4)


def other_manifest(artifact, monkeypatch):
    note = (artifact / VERIFICATION).read_bytes()
    shutil.rmtree(artifact)
    engine.save(engine.compile_program(toy_program(seed=1)), artifact, artifact.parent / "key")
    (artifact / VERIFICATION).write_bytes(note)


def other_machine(artifact, monkeypatch):
    monkeypatch.setattr(load_module, "fingerprint", lambda devices: fingerprint(devices) | {"CPU model": "another"})


def forged(artifact, monkeypatch):
    note = json.loads((artifact / VERIFICATION).read_text())
    (artifact / VERIFICATION).write_text(json.dumps(note | {"hmac_sha256": "0" * 64}))


def cut_short(artifact, monkeypatch):
    (artifact / VERIFICATION).write_bytes((artifact / VERIFICATION).read_bytes()[:-9])


def other_json(artifact, monkeypatch):
    (artifact / VERIFICATION).write_text('{"facts": null, "hmac_sha256": 3}')


@pytest.mark.parametrize("change", [other_manifest, other_machine, forged, cut_short, other_json])
def test_a_note_of_something_else_counts_for_nothing(noted, key, tmp_path, monkeypatch, change):
    shutil.copy(key, tmp_path / "key")
    change(noted, monkeypatch)
    assert start(noted, tmp_path / "key").probe is None


def test_a_load_that_defers_nothing_leaves_no_note(artifact, key):
    assert engine.load(artifact, signing_key=key).probe is None
    assert not (artifact / VERIFICATION).exists()


@pytest.mark.parametrize(
    ("mesh", "batch", "own"),
    [((1, 1), 4, [3]), ((4, 2), 16, [1, 11]), ((4, 2), 4, [0, 3]), ((4, 8), 8, list(range(8)))],
)
def test_places_of_the_probe(mesh, batch, own):
    probe = DeferredProbe(MeshShape(*mesh), np.zeros((batch, 1)), np.zeros((batch, 1)), 1.0)
    executable: Any = SimpleNamespace(whole_batch=lambda inputs: np.resize(inputs, (batch, 1)))
    mixed = probe.mixed_with(executable, np.ones((probe.room, 1)))
    assert np.flatnonzero(mixed[:, 0] == 0).tolist() == own


def test_it_adds_a_launch_only_where_the_last_has_no_room():
    probe = DeferredProbe(MeshShape(1, 2), np.zeros((8, 1)), np.zeros((8, 1)), 1.0)
    assert [number for number in range(1, 17) if probe.adds_launch(number)] == [7, 8, 15, 16]
