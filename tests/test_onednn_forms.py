"""Forms of oneDNN's call are tried where a crash does no harm."""

import json

import pytest

from cambrian.models.lowerings import LOWERINGS, onednn_forms
from cambrian.models.lowerings.activations import ACTIVATIONS


@pytest.fixture
def nothing_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onednn_forms, "cache_dir", lambda: tmp_path)
    onednn_forms._forms.cache_clear()
    yield
    onednn_forms._forms.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(LOWERINGS["onednn"].obstacle("cpu") is not None, reason="oneDNN can't be called here")
def test_a_name_that_ends_the_process_is_left_out_and_the_others_are_tried():
    assert onednn_forms._tried(["RELU", "NO_SUCH_ACTIVATION", "TANH"]) == {"RELU", "TANH"}


def test_the_answer_is_kept(nothing_kept, monkeypatch):
    asked = []
    monkeypatch.setattr(onednn_forms, "_tried", lambda names: asked.append(names) or frozenset({"TANH"}))
    assert onednn_forms.fused_activations() == {"TANH"}
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH"}
    assert asked == [[*ACTIVATIONS, "INT8"]]
    onednn_forms._path().write_text("cut off")
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH"}
    assert len(asked) == 2 and json.loads(onednn_forms._path().read_text()) == ["TANH"]
