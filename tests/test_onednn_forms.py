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
    assert onednn_forms._tried(["RELU", "NO_SUCH_ACTIVATION", "TANH"]) == ({"RELU", "TANH"}, True)


@pytest.mark.parametrize(
    ("child", "answer"),
    [
        ("print('note'); print('RELU right'); print('TANH wrong'); print('ELU right')", ({"RELU", "ELU"}, True)),
        ("print(names[0], 'right', flush=True); os.abort()", ({"RELU", "ELU"}, True)),
        ("print('RELU right', flush=True); os.kill(os.getpid(), signal.SIGKILL)", ({"RELU"}, False)),
        ("print('RELU right'); sys.exit(1)", ({"RELU"}, False)),
        ("os.abort()", (set(), False)),
        ("time.sleep(60)", (set(), False)),
    ],
)
def test_names_are_tried_unless_a_child_ends_for_another_reason(monkeypatch, child, answer):
    monkeypatch.setattr(
        onednn_forms, "_CHILD", f"import json, os, signal, sys, time; names = json.load(sys.stdin); {child}"
    )
    if "sleep" in child:
        monkeypatch.setattr(onednn_forms, "_TIME_LIMIT_S", 0.1)
    assert onednn_forms._tried(["RELU", "TANH", "ELU"]) == answer


def test_the_answer_is_kept(nothing_kept, monkeypatch):
    asked = []
    monkeypatch.setattr(onednn_forms, "_tried", lambda names: asked.append(names) or (frozenset({"TANH"}), True))
    assert onednn_forms.fused_activations() == {"TANH"}
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH"}
    assert asked == [[*ACTIVATIONS, "INT8"]]
    onednn_forms._path().write_text("cut off")
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH"}
    assert len(asked) == 2 and json.loads(onednn_forms._path().read_text()) == ["TANH"]


def test_an_incomplete_answer_is_not_kept(nothing_kept, monkeypatch):
    answers = [(frozenset({"TANH"}), False), (frozenset({"TANH", "ELU"}), True)]
    monkeypatch.setattr(onednn_forms, "_tried", lambda names: answers.pop(0))
    assert onednn_forms.fused_activations() == {"TANH"}
    assert onednn_forms.fused_activations() == {"TANH"}  # within this process
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH", "ELU"}
