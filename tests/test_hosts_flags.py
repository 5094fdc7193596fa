"""Flags of several processes, and how these divide a mesh."""

import pytest

from cambrian.commands.configuration import Configuration
from cambrian.commands.flags import read_configuration
from cambrian.commands.model import default_model
from cambrian.sharding import MeshShape, UsageError
from flag_values import parse


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_processes": 2}, "several processes require --coordinator HOST:PORT"),
        ({"process_id": 1}, "several processes require --coordinator HOST:PORT"),
        ({"coordinator": "a:1"}, "expected --num_processes of at least 2, got 1"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "must be below num_processes of 2, got 2"),
        ({"coordinator": "a", "num_processes": 2}, "HOST:PORT, such as 10.0.0.1:7000, got 'a'"),
        ({"coordinator": "a:70000", "num_processes": 2}, "HOST:PORT, such as 10.0.0.1:7000, got 'a:70000'"),
        ({"coordinator": "a:1", "num_processes": 3}, "divide mesh 4x8 into equal parts"),
        ({"coordinator": "a:1", "num_processes": 2, "cards": 2}, "leave --cards out, got 2"),
        ({"coordinator": "a:1", "num_processes": 2, "execution": "online"}, "must be offline in several processes"),
        ({"coordinator": "a:1", "num_processes": 2, "user_model": "m.py:f"}, "expected --artifact DIRECTORY"),
    ],
)
def test_flags_of_processes_that_make_no_sense(flags, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Configuration(default_model("cifar"), MeshShape(4, 8), **flags)


@pytest.mark.parametrize("mode", ["compile", "plan", "train", "batch", "loadgen"])
def test_other_modes_run_in_one_process(mode):
    with pytest.raises(UsageError, match=f"mode {mode} runs in one process: leave --coordinator out, got 'a:1'"):
        read_configuration(parse("--coordinator", "a:1", "--num_processes", 2, "--mode", mode))


def test_a_sweep_runs_in_processes_of_its_own():
    with pytest.raises(UsageError, match="a sweep starts its own processes: leave --coordinator out, got 'a:1'"):
        parse("--coordinator", "a:1", "--num_processes", 2, "--threads", "1,2")


def test_the_host_of_a_coordinator_may_be_an_ipv6_address():
    configuration = Configuration(default_model("cifar"), MeshShape(1, 2), coordinator="[::1]:7000", num_processes=2)
    assert configuration.coordinator_address == ("::1", 7000)


@pytest.mark.parametrize(
    ("mesh", "processes", "block"),
    [("4x8", 2, "4x4"), ("4x8", 8, "4x1"), ("4x8", 16, "2x1"), ("4x1", 2, "2x1"), ("6x2", 4, "3x1"), ("3x8", 3, "1x8")],
)
def test_processes_divide_the_data_axis_first(mesh, processes, block):
    assert str(MeshShape.parse(mesh).divided(processes)) == block


@pytest.mark.parametrize(("mesh", "processes"), [("4x8", 3), ("1x2", 4), ("4x8", 64), ("3x4", 8)])
def test_processes_that_dont_divide_the_mesh_are_refused(mesh, processes):
    with pytest.raises(UsageError, match=f"divide mesh {mesh} into equal parts.*, got {processes}"):
        MeshShape.parse(mesh).divided(processes)
