"""Forms of oneDNN's call are tried where a crash does no harm."""

import json
import subprocess
import sys

import pytest

from cambrian.models.lowerings import LOWERINGS, onednn_forms
from cambrian.models.lowerings.activations import ACTIVATIONS
from cambrian.sharding.host import child_environment


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


def test_a_child_that_crashes_leaves_no_file_in_the_user_s_folder():
    code = "import json, resource; from cambrian.models.lowerings import onednn_forms\n"
    code += "json.load = lambda _: []; onednn_forms.os._exit = lambda _: None; onednn_forms.try_here()\n"
    code += "print(resource.getrlimit(resource.RLIMIT_CORE))"
    child = subprocess.run([sys.executable, "-P", "-c", code], env=child_environment(), capture_output=True, text=True)
    assert child.stdout == "(0, 0)\n", child.stderr


def test_the_answer_is_kept(nothing_kept, monkeypatch):
    asked = []
    monkeypatch.setattr(onednn_forms, "_tried", lambda names: asked.append(names) or (frozenset({"TANH"}), True))
    assert onednn_forms.fused_activations() == {"TANH"}
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH"}
    assert asked == [[*ACTIVATIONS, "INT8"]]
    kept = json.loads(onednn_forms._path().read_text())
    assert {name for name, is_right in kept.items() if is_right} == {"TANH"}
    for damaged in ("cut off", "null", "3", "[[1]]", "{}", "[" * 100_000, json.dumps({"TANH": True})):
        onednn_forms._path().write_text(damaged)  # the last one as by a version that tries fewer
        onednn_forms._forms.cache_clear()
        assert onednn_forms.fused_activations() == {"TANH"}
        assert json.loads(onednn_forms._path().read_text()) == kept
    assert len(asked) == 8


def test_an_incomplete_answer_is_not_kept(nothing_kept, monkeypatch):
    answers = [(frozenset({"TANH"}), False), (frozenset({"TANH", "ELU"}), True)]
    monkeypatch.setattr(onednn_forms, "_tried", lambda names: answers.pop(0))
    assert onednn_forms.fused_activations() == {"TANH"}
    assert onednn_forms.fused_activations() == {"TANH"}  # within this process
    onednn_forms._forms.cache_clear()
    assert onednn_forms.fused_activations() == {"TANH", "ELU"}
