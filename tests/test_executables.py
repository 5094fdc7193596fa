"""The executable of a configuration: what happens where a precision fails the probe."""

import pytest

from cambrian import engine
from cambrian.commands.executables import make_executable
from cambrian.commands.flags import read_configuration
from cambrian.commands.program import resnet
from cambrian.models.execution import build_program
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
