"""Invalid flags and input: exit code 2, and one line with the requirement and what was got."""

import dataclasses
import errno
import json
import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

import cambrian
from cambrian.commands.flags import read_configuration
from cambrian.commands.output import deferred_interrupts, output_folder, reporting
from cambrian.commands.report import Report
from cambrian.models.resnet.architecture import Architecture
from cambrian.sharding import OutOfMemory, UsageError
from cambrian.sharding.host import host_cores
from cambrian.sharding.host.files import replace_file
from command import Command, CommandHere, Outcome, read_report, write_checkpoint, write_images
from flag_values import parse

TINY = "--config tiny.py"
# Flags → the message, or its beginning if it ends in ": ".
CASES = {
    "--mesh 4by8": "mesh must be written MODELxDATA, such as 4x8, got '4by8'",
    "--mesh 1x2,4by8": "mesh must be written MODELxDATA, such as 4x8, got '4by8'",
    "--mesh 2,2": "mesh must be written MODELxDATA, such as 4x8, got '2'",
    "--mesh 4x8,": "mesh must be written MODELxDATA, such as 4x8, got ''",
    "--mesh 0x32": "a mesh must have at least 1 device on each axis, got 0x32",
    "--mesh 64x1": "expected at most 32 virtual CPU devices, unless "
    "XLA_FLAGS=--xla_force_host_platform_device_count=N asks for more, got 64",
    "--mesh 2x4 --batch_size 6": "batch_size must be a multiple of the data axis of 4 in mesh 2x4, got 6",
    "--threads 0": "threads must be from 1 to 1024, got 0",
    "--cards 0": "cards must be from 1 to 1024, got 0",
    "--cards -1": "cards must be from 1 to 1024, got -1",
    "--cards 1024": f"expected at most {host_cores()} cards, one for each core, got 1024",
    "--cards 2 --execution online": "execution must be offline with several cards, which load one artefact, got online",
    "--cards 2 --mode plan": "mode plan uses no cards: leave --cards out, got 2",
    "--cards 2 --mode train": "mode train uses no cards: leave --cards out, got 2",
    "--config nothing": "config must be a .py or report.json file, "
    "or one of cambricon_grid, resnet101_cifar10, resnet101_imagenet, train_resnet101_cifar10; got 'nothing'",
    "--nonsense 3": "unknown flag --nonsense; --help lists all flags",
    "--precision int4": "precision must be one of auto, float32, bfloat16, int8, got 'int4'",
    "--partition columns": "partition must be one of auto, samples, rows, channels, intra_sample, got 'columns'",
    "--platform npu": "platform must be one of auto, cpu, gpu, tpu, got 'npu'",
    "--mode fly": "mode must be one of run, compile, plan, train, batch, loadgen, got 'fly'",
    "--execution later": "execution must be one of offline, online, got 'later'",
    "--device_memory_limit 5": "device_memory_limit must be a number and one of B, KiB, MiB, GiB, TiB, KB, MB, GB, TB, "
    "such as 512MiB, got '5'",
    "photos": "arguments must be flags that begin with --, got 'photos'",
    "--data absent": "data must be auto, cifar10, cifar10_sample, synthetic or a folder of images, got 'absent': "
    "No such file or directory",
    "--weights=": "weights must be auto, random or a path, got ''",
    "--data synthetic --split train": "split must be left out for synthetic images, which have none, got 'train'",
    "--config tiny.py --mesh 1x2 --signing_key nowhere": "the signing key must be a readable file, got nowhere, a link "
    "to nowhere",
    "--data empty": "expected a folder with JPEG or PNG images, got empty without any",
    f"{TINY} --data classes": "each class must be exactly one of the model's 10 labels, got 'sky' ",
    "--data images --num_images 4": "num_images must be at most the 3 images of folder images, got 4",
    "--weights absent.safetensors": "weights must be auto, random or a path that can be read, got absent.safetensors: "
    "No such file or directory",
    f"{TINY} --mesh 1x2 --weights depth.safetensors": "--config needs weights of resnet18 with the cifar stem and "
    "10 classes, got resnet4 with the cifar stem and 10 classes in depth.safetensors",
    f"{TINY} --mesh 1x2 --weights classes.safetensors": "--config needs weights of resnet18 with the cifar stem and "
    "10 classes, got resnet18 with the cifar stem and 4 classes in classes.safetensors",
    "--mode compile --execution online": "mode compile saves an artifact: --execution must be offline, got online",
    "--mode compile --output_dir there": "mode compile writes to --artifact_dir: leave --output_dir out, got 'there'",
    "--mode train --partition rows": "mode train runs no executable: leave --partition out, got 'rows'",
    "--freeze backbone": "--freeze belongs to mode train, got mode run",
    "--mode train --freeze head": "freeze must be one of none, backbone, got 'head'",
    "--mode train --freeze backbone --weights random": "freeze backbone requires trained weights, got --weights random",
    "--mode train --mesh 2x1": "the mesh must be 1xDATA for training, got 2x1",
    "--mode train --data synthetic": "training needs labelled images, --data cifar10 or a folder of class folders, "
    "got synthetic images, seed 0",
    "--mode compile --artifact empty": "mode compile builds an artifact: leave --artifact out, got 'empty'",
    "--mode batch": "mode batch runs an artefact: expected --artifact DIRECTORY, which --mode compile makes",
    "--mode batch --artifact empty --workers 0": "workers must be from 1 to 65536, got 0",
    "--mode batch --artifact empty --num_images 3": "--num_images belongs to other modes, got mode batch",
    "--mode plan --num_images 3": "--num_images belongs to other modes, got mode plan",
    "--mode plan --skip_bad_images": "--skip_bad_images belongs to other modes, got mode plan",
    "--mode compile --skip_bad_images": "--skip_bad_images belongs to other modes, got mode compile",
    "--mode plan --data absent": "--data belongs to other modes, got mode plan",
    "--mode compile --data absent": "--data belongs to other modes, got mode compile",
    "--mode compile --num_images 1,2": "--num_images belongs to other modes, got mode compile",
    "--mode compile --precision int8 --split train": "--split belongs to other modes, got mode compile",
    "--mode batch --artifact empty --seed 3": "--seed belongs to other modes, got mode batch",
    "--artifact empty --artifact_dir there": "an artifact is in no cache: leave --artifact_dir out, got 'there'",
    "--mode plan --split train": "--split belongs to other modes, got mode plan",
    "--mode train --calibrate_s 3": "--calibrate_s belongs to other modes, got mode train",
    "--artifact empty --calibrate_s 3": "an artifact decides its own calibrate_s: leave --calibrate_s out, got 3.0",
    "--mode train --skip_bad_images": "--skip_bad_images belongs to other modes, got mode train",
    "--mode batch --artifact empty --output_dir s3://out": "output_dir must be a folder of this machine, got s3://out",
    "--workers 2": "--workers belongs to mode batch, got mode run",
    "--artifact_dir file/cache": "the artefact directory must be writable and have space, got file/cache: "
    "Not a directory",
    "--output_dir file/output": "output_dir must be a writable folder, got file/output: Not a directory",
    "--data images --output_dir images": "output_dir must be a folder outside the images to read, got images in images",
    "--precision int8 --calibration_data split --output_dir split/out": "output_dir must be a folder outside the "
    "images to read, got split/out in split",
    "--mode train --data split --batch_size 4 --output_dir split/out": "output_dir must be a folder outside the "
    "images to read, got split/out in split",
    "--threads 1,2 --data images --output_dir images/out": "output_dir must be a folder outside the images to "
    "read, got images/out in images",
    f"{TINY} --mesh 1x4 --partition intra_sample": "the model axis must divide the rows or channels of a convolution "
    "for partition intra_sample, got mesh 1x4",
    f"{TINY} --mesh 4x1 --partition rows": "mesh 4x1: layer3.0.conv1: output rows must be divisible by the "
    "model axis of 4 for rows, got 2",
    "--artifact empty --mesh 1x2": "an artifact decides its own mesh: leave --mesh out, got '1x2'",
    "--artifact absent": "an artefact must be a directory with a manifest.json, got absent",
    "--config list.json": "config must be a report.json with flags, got list.json: ",
    "--config other.json": "other.json must set flags of main.py, got 'depth'",
    "--config threads.json": "threads.json: threads must be an integer, or several different ones, "
    "separated by commas, got None",
    "--config syntax.py": "config syntax.py must run without an error, got SyntaxError: ",
    "--config exit.py": "config exit.py must run without an error, got SystemExit: ",
    "--config deep.json": "config must be a report.json with flags, got deep.json: RecursionError ",
    "--threads 1000000": "threads must be from 1 to 1024, got 1000000",
    "--num_images 1000000000000": "num_images must be from 0 to 1000000000, got 1000000000000",
    "--device_memory_limit 1000000000000000000000000000000B": "device_memory_limit must be at most 1024TiB, "
    "got '100000000000...000000000000B'",
    "--threads 1,2 --timeout_s nan": "timeout_s must be from 1 to 604800, got nan",
    "--artifact empty --batch_size 8,16": "an artifact decides its own batch_size: give one --batch_size, got 2",
    "--mesh 1x1,1x2 --num_images 1,2,3,4 --seed 1,2": "seed must be an integer, got '1,2'",
    "--weights fifo": "weights must be a file or a folder, got the FIFO fifo",
    "--config fifo.json": "config must be a file or a folder, got the FIFO fifo.json",
    "--flagfile fifo": "unknown flag --flagfile; --help lists all flags",
    "--mode train --data split --batch_size 8": "batch_size must be at most the 4 training images, got 8",
    "--thread 3": "unknown flag --thread; did you mean --threads?",
    "--threads=2-8": "threads must be an integer, or several different ones, separated by commas, got '2-8'",
    "--precision float32,float32": "precision must have each value once, got float32 more than once",
    "--timeout_s soon": "timeout_s must be a number, got 'soon'",
    "--search fast": "search must be one of grid, auto, got 'fast'",
    "--debug=maybe": "debug must be true or false, got 'maybe'",
    "--fresh false": "--fresh takes no value, and --nofresh turns it off, got 'false'",
    "--seed 1 --mesh": "--mesh must have a value, got none",
    "--mesh --threads 2": "--mesh must have a value, got the next flag, --threads",
    "--output_dir --nofresh": "--output_dir must have a value, got the next flag, --nofresh",
}
# Some for each place in which a request can be refused, and those that may wait forever.
AS_A_PROCESS = (
    "--nonsense 3",
    "photos",
    f"{TINY} --mesh 4x1 --partition rows",
    "--weights fifo",
    "--config fifo.json",
    "--flagfile fifo",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> CommandHere:
    home = tmp_path_factory.mktemp("home")
    command = CommandHere(home)
    (home / "empty").mkdir()
    (home / "file").touch()
    write_images(home / "images", ["a.png", "b.png", "c.png"])
    write_images(home / "classes", ["sky/a.png"])
    folders = ("train/a", "train/b", "test/a", "test/b")
    write_images(home / "split", [f"{folder}/{index}.png" for folder in folders for index in range(2)])
    small = Architecture("cifar", (1,), False, 10)
    write_checkpoint(home / "depth.safetensors", small)
    write_checkpoint(home / "classes.safetensors", dataclasses.replace(small, blocks=(2, 2, 2, 2), num_classes=4))
    (home / "list.json").write_text('{"flags": ["threads"]}')
    (home / "other.json").write_text('{"flags": {"depth": "18"}}')
    (home / "threads.json").write_text('{"flags": {"threads": null}}')
    (home / "deep.json").write_text('{"flags": ' + "[" * 10_000 + "]" * 10_000 + "}")
    (home / "syntax.py").write_text("CONFIG = = 3")
    (home / "exit.py").write_text("import sys; sys.exit(0)")
    for name in ("fifo", "fifo.json"):
        os.mkfifo(home / name)
    (home / "nowhere").symlink_to("absent")
    return command


@pytest.mark.parametrize("flags", [flags for flags in CASES if flags not in AS_A_PROCESS])
def test_an_invalid_request_is_refused_in_one_line_and_leaves_nothing(command, flags):
    before = files(command.home)
    check_refusal(command(*flags.split()), CASES[flags])
    assert files(command.home) == before


def files(home: Path) -> set[Path]:
    """All but those of the cache, and of the configuration, which holds the key."""
    return {path for path in home.rglob("*") if path.relative_to(home).parts[0] not in ("cache", "config")}


@pytest.mark.slow
def test_a_process_that_refuses_a_request_ends_with_2(command):
    process, before = Command(command.home), files(command.home)
    with ThreadPoolExecutor(2) as pool:  # each takes a second to start
        outcomes = list(pool.map(lambda flags: process(*flags.split()), AS_A_PROCESS))
    for flags, outcome in zip(AS_A_PROCESS, outcomes, strict=True):
        check_refusal(outcome, CASES[flags])
    assert files(command.home) == before


def check_refusal(outcome: Outcome, expected: str) -> None:
    assert outcome.exit_code == 2, outcome.stderr
    check_message(outcome.error, expected)
    assert outcome.stdout == ""


def check_message(message: str, expected: str) -> None:
    assert message.startswith(expected) if expected.endswith((": ", " ")) else message == expected


def test_the_version_is_that_of_the_package_and_of_jax(command):
    outcome = command("--version")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout == f"cambrian {cambrian.__version__}, jax {jax.__version__}\n"


def test_debug_shows_the_traceback(command):
    outcome = command("--mesh", "0x32", "--debug")
    assert outcome.exit_code == 2
    assert "Traceback" in outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "error: a mesh must have at least 1 device on each axis, got 0x32"


def test_a_refused_run_leaves_an_earlier_one_as_it_was_and_makes_no_folder(command):
    output_dir = command.home / "output"
    output_dir.mkdir()
    earlier = {"predictions.csv": "of an earlier run", "report.json": '{"flags": {}, "status": "ok"}'}
    for name, text in earlier.items():
        (output_dir / name).write_text(text)
    refused = ("--config", "tiny.py", "--mesh", "4x1", "--partition", "rows", "--output_dir")
    assert command(*refused, output_dir).exit_code == 2
    assert {path.name: path.read_text() for path in output_dir.iterdir()} == earlier
    assert command(*refused, "new/output").exit_code == 2
    assert not (command.home / "new").exists()


def test_a_folder_without_a_report_loses_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("metrics.csv", "model/config.json"):
        (tmp_path / name).write_text("mine")
    report = Report(flags={})
    with pytest.raises(OutOfMemory), reporting(report, tmp_path):
        raise OutOfMemory
    assert read_report(tmp_path)["status"] == "out_of_memory"
    assert (tmp_path / "metrics.csv").read_text() == "mine"
    assert (tmp_path / "model" / "config.json").read_text() == "mine"


def test_a_report_holds_no_number_that_json_has_not(tmp_path):
    Report(flags={}, load_ms=math.nan, build_ms=-math.inf, top1=0.5).write(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert (report["load_ms"], report["build_ms"], report["top1"]) == (None, None, 0.5)


def test_weights_are_refused_before_the_build_is_announced(command):
    outcome = command("--config", "tiny.py", "--mesh", "1x2", "--weights", "depth.safetensors")
    assert outcome.exit_code == 2 and "building" not in outcome.stderr


def test_a_report_that_the_disk_can_t_hold_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "report.json")

    report = Report(flags={})
    monkeypatch.setattr(Report, "write", full)
    message = "output_dir must be a writable folder, got .*: No space left on device"
    with pytest.raises(UsageError, match=message), reporting(report, tmp_path) as start:
        start()
    assert capsys.readouterr().err == ""
    with pytest.raises(OutOfMemory), reporting(report, tmp_path):
        raise OutOfMemory
    assert "report.json isn't up to date" in (printed := capsys.readouterr().err) and "the report is" not in printed


@pytest.mark.parametrize("ended_by", [None, OutOfMemory])
def test_an_interrupt_while_the_last_report_is_written_leaves_it_whole(tmp_path, monkeypatch, ended_by):
    def interrupted(path, data):
        signal.raise_signal(signal.SIGINT)
        replace_file(path, data)

    with pytest.raises(KeyboardInterrupt), reporting(Report(flags={}), tmp_path) as start:
        start()
        monkeypatch.setattr("cambrian.commands.report.replace_file", interrupted)
        if ended_by is not None:
            raise ended_by
    assert read_report(tmp_path)["status"] == ("ok" if ended_by is None else "out_of_memory")


def test_an_interrupt_that_the_process_ignores_is_ignored_while_results_are_written():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupts():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_is_for_one_command_at_a_time(command):
    configuration = read_configuration(parse("--output_dir", command.home / "shared"))
    with output_folder(configuration) as held:
        with pytest.raises(UsageError, match="no other running command, got .*shared"), output_folder(configuration):
            pass
        assert held.is_dir()
    assert not held.exists()
    with output_folder(configuration):
        pass


def test_commands_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    configuration = read_configuration(parse())
    with output_folder(configuration) as first, output_folder(configuration) as second:
        assert (first, second) == (Path("runs/now-4x8"), Path("runs/now-4x8-2"))
    assert not Path("runs").exists()


def test_a_link_to_nowhere_holds_no_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to("absent")
    with (
        pytest.raises(UsageError, match="output_dir must be a writable folder, got runs/.*: File exists"),
        output_folder(read_configuration(parse())),
    ):
        pass


def test_the_output_folder_holds_no_weights_that_are_read(tmp_path):
    command = CommandHere(tmp_path)
    weights = command.small_flags()[1]
    outcome = command("--weights", weights, "--output_dir", tmp_path)
    assert outcome.exit_code == 2 and (tmp_path / "small.safetensors").exists()
    assert outcome.error == (
        f"output_dir must be a folder without the weights that are read, got {tmp_path} with {weights}"
    )


def test_too_little_device_memory(tmp_path):
    command = CommandHere(tmp_path)
    limit = ("--device_memory_limit", "100KiB")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "predictions.csv").write_text("of an earlier run")
    (tmp_path / "output" / "report.json").write_text('{"flags": {}, "status": "ok"}')
    outcome = command(*command.small_flags(), "--mesh", "1x2", *limit, "--output_dir", tmp_path / "output")
    assert outcome.exit_code == 1
    assert outcome.error.startswith("OutOfMemory: a device must hold at least ")
    assert outcome.error.endswith("bytes for weights and the working memory of a layer, got a limit of 102400")
    report = read_report(tmp_path / "output")
    assert (report["status"], report["failure_reason"]) == ("out_of_memory", outcome.error)
    assert report["num_images"] is None
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["report.json"]
