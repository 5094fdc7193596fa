"""From flags to a sweep: lists, refusals, the commands it runs."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from absl import flags
from PIL import Image

from cambrian.commands.flags import read_configuration
from cambrian.commands.sweep.command import sweep_command
from cambrian.commands.sweep.command_lines import command_line
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.sweep.process import STDERR, STDOUT, Ended
from cambrian.commands.sweep.setup import sweep_of_flags
from cambrian.sharding import UsageError
from command import SMALL, TINY_CONFIG, write_checkpoint, write_images
from flag_values import parse


def sweep_of(*arguments: object):
    return sweep_of_flags(parse(*arguments), ["python3", "main.py"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[str, Path]:
    """Flags of a small network, whose times are soon predicted."""
    config = tmp_path_factory.mktemp("config") / "tiny.py"
    config.write_text(TINY_CONFIG)
    return "--config", config


def test_the_papers_grid():
    grid = Grid.of(parse("--config", "cambricon_grid").axes)
    assert len(grid.cells) == len(set(grid.cells)) == 40
    assert grid.varied == ("mesh", "threads")
    assert {cell["mesh"] for cell in grid.cells} == {"2x16", "4x8", "8x4", "16x2", "32x1"}
    assert {cell["partition"] for cell in grid.cells} == {"intra_sample"}
    assert len({cell.executable for cell in grid.cells}) == 5
    first = grid.cells[0]
    assert (grid.name(first), grid.folder(first)) == ("mesh 2x16, threads 2", "mesh=2x16,threads=2")
    meshes, threads = "2x16,4x8,8x4,16x2,32x1", "2,4,6,8,10,12,14,16"
    typed = parse("--mesh", meshes, "--threads", threads, "--partition", "intra_sample", "--batch_size", "64")
    assert Grid.of(typed.axes) == grid


def test_a_single_value_stays_a_single_value():
    assert (parse("--threads", "4")["threads"], parse("--threads", "4, 8")["threads"]) == (4, (4, 8))
    assert parse("--mesh", "4x8")["mesh"] == "4x8"


def test_cards_are_an_axis(tiny):
    axes = ("--mesh", "1x1", "--cards", "1,2", "--threads", "1,2,4")
    sweep = sweep_of(*tiny, *axes, "--precision", "float32", "--data", "synthetic", "--num_images", 8)
    assert {(cell["cards"], cell["threads"]) for cell in sweep.refused} == {(2, 1)}
    assert set(sweep.refused.values()) == {"threads must be at least one for each of 2 cards, got 1"}
    cells = [cell for cell in sweep.grid.cells if cell not in sweep.refused]
    commands = [sweep.run_command(cell, 0, Path("out")) for cell in cells]
    assert sweep.build_command is not None
    commands += [sweep.build_command(cell) for cell in cells]
    given = [int(command[command.index("--cards") + 1]) for command in commands]
    assert given == 2 * [cell["cards"] for cell in cells]
    assert not {cell.executable for cell in cells if cell["cards"] == 1} & {
        cell.executable for cell in cells if cell["cards"] == 2
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repeats", 2), "--repeats requires a sweep, several values of one of mesh, .*, got one configuration"),
        (("--precision", "float32,int4"), "precision must be one of auto, float32, bfloat16, int8, got 'int4'"),
        (("--mesh", "1x2,1x4", "--batch_size", "3"), "batch_size must be a multiple of the data axis"),
        (("--mesh", "1x2,1x4", "--mode", "fly"), "mode must be run or compile or loadgen for a sweep, got 'fly'"),
        (("--mesh", "1x1,1x2", "--mode", "train"), "mode must be run or compile or loadgen for a sweep, got 'train'"),
        (("--mesh", "1x1,1x2", "--mode", "plan"), "mode must be run or compile or loadgen for a sweep, got 'plan'"),
        (
            ("--mesh", "1x2,1x4", "--data", "absent"),
            "data must be auto, cifar10, cifar10_sample, synthetic or a folder of images",
        ),
        (("--mesh", "1x2,1x4", "--artifact", "some"), "an artifact decides its own mesh"),
        (
            ("--threads", "1,2", "--artifact", "absent"),
            "an artefact must be a directory with a manifest.json, got absent",
        ),
        (
            ("--mesh", "1x2,1x4", "--weights", "absent"),
            "weights must be a safetensors or PyTorch file or a model folder",
        ),
        (
            ("--threads", ",".join(map(str, range(1, 102))), "--num_images", ",".join(map(str, range(1, 101)))),
            "a sweep must have at most 10000 configurations, got 10100",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        sweep_of(*arguments)


def test_classes_that_are_no_labels_are_refused(tmp_path):
    write_images(tmp_path, ["sky/a.png"])
    with pytest.raises(UsageError, match="each class must be exactly one of the model's 10 labels, got 'sky'"):
        sweep_of("--mesh", "1x2,1x4", "--data", tmp_path)


@pytest.mark.slow
def test_a_dry_run_of_a_search_lists_what_it_would_run(tiny, capsys):
    axes = ("--mesh", "1x1,4x4", "--batch_size", "16,256", "--precision", "float32")
    flags = parse(*tiny, "--data", "synthetic", *axes, "--search", "auto", "--dry_run")
    assert sweep_command(flags, ["python3", "main.py"]) == 0
    *listed, summary, last = capsys.readouterr().out.splitlines()
    speeds = [float(line.split()[-2]) for line in listed[1:]]
    assert speeds == sorted(speeds, reverse=True)
    left_out = re.fullmatch("the search starts with the first; it leaves out (.*) that are predicted .*", last)
    assert left_out and 0 < int(left_out[1]) == 4 - len(speeds)
    assert summary == "4 configurations, 4 executables, predicted; nothing was run"


def test_values_that_come_twice_are_refused():
    with pytest.raises(flags.IllegalFlagValueError, match="threads must have each value once, got 2 more than once"):
        parse("--threads", "2,4,2")


def test_a_combination_that_makes_no_sense_is_a_result(tiny, tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "c.png"])
    sweep = sweep_of(*tiny, "--mesh", "1x2,1x4", "--batch_size", "6,8", "--data", tmp_path, "--num_images", "2,3,4")
    reasons = {sweep.grid.name(cell): reason for cell, reason in sweep.refused.items()}
    assert len(reasons) == 6
    assert reasons["mesh 1x4, batch_size 6, num_images 3"] == (
        "batch_size must be a multiple of the data axis of 4 in mesh 1x4, got 6"
    )
    assert reasons["mesh 1x2, batch_size 8, num_images 4"].startswith(
        "num_images must be at most the 3 images of folder"
    )
    assert set(sweep.num_images.values()) == {2, 3}


def test_what_the_planner_can_t_cut_is_a_result(tiny):
    axes = ("--mesh", "1x2,2x1", "--partition", "auto,intra_sample")
    sweep = sweep_of(*tiny, *axes, "--data", "synthetic")
    ((cell, reason),) = sweep.refused.items()
    assert sweep.grid.name(cell) == "mesh 1x2, partition intra_sample"
    assert reason == (
        "the model axis must divide the rows or channels of a convolution for partition intra_sample, got mesh 1x2"
    )
    assert len(sweep.predictions) == 3
    with pytest.raises(UsageError, match="for partition intra_sample, got mesh 1x2"):
        sweep_of(*tiny, "--mesh", "1x2,2x1", "--partition", "intra_sample", "--data", "synthetic")


def test_an_int8_build_of_a_sweep_calibrates_on_its_data(tmp_path):
    write_images(tmp_path, [f"{split}/{index}.png" for split in ("train", "test") for index in range(2)])
    sweep = sweep_of("--precision", "int8,float32", "--data", tmp_path, "--mesh", "1x1", "--split", "test")
    assert sweep.build_command is not None
    built = {cell.flags["precision"]: sweep.build_command(cell) for cell in sweep.grid.cells}
    assert {precision: "--data" in command for precision, command in built.items()} == {"int8": True, "float32": False}
    for command in built.values():
        read_configuration(parse(*command[2:]))


@pytest.mark.parametrize(
    ("mode", "reported"), [("run", {"freeze": "backbone"}), ("loadgen", {"skip_bad_images": True})]
)
def test_the_commands_of_a_sweep_leave_out_what_a_report_holds_for_another_mode(tiny, tmp_path, mode, reported):
    (tmp_path / "report.json").write_text(json.dumps({"flags": reported | {"config": str(tiny[1]), "image_size": 8}}))
    given = ("--config", tmp_path / "report.json", "--mode", mode, "--data", "synthetic")
    sweep = sweep_of(*given, "--mesh", "1x1,1x2")
    cell = sweep.grid.cells[0]
    assert sweep.build_command is not None
    for command in (sweep.run_command(cell, 8, tmp_path / "out"), sweep.build_command(cell)):
        assert read_configuration(parse(*command[2:])).image_size == 8
    resumed = parse(*shlex.split(sweep.resume)[2:])
    assert resumed.is_sweep and read_configuration(resumed, cell.flags).image_size == 8


def test_the_commands_of_a_sweep(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(TINY_CONFIG.rstrip().removesuffix(")") + ', flags=(("threads", "1,2"), ("seed", "5")),\n)')
    images = ("--data", "synthetic", "--skip_bad_images")
    sweep = sweep_of("--config", config, "--mesh", "1x2,2x1", "--repeats", 2, "--fresh", *images)
    cell = sweep.grid.cells[1]
    given = ["python3", "main.py", "--config", str(config), "--mesh", "1x2", "--threads", "2"]
    assert sweep.run_command(cell, 8, tmp_path) == [
        *given,
        *("--data", "synthetic", "--num_images", "8", "--output_dir", str(tmp_path), "--skip_bad_images"),
        *("--seed", "5"),
    ]
    assert sweep.build_command is not None
    assert sweep.build_command(cell) == [*("python3", "main.py", "--mode", "compile", *given[2:], "--seed", "5")]
    assert read_configuration(parse(*sweep.build_command(cell)[2:])).data == "auto"
    assert sweep.answer(cell) == f"python main.py {' '.join(given[2:])} --data synthetic --skip_bad_images --seed 5"
    # Each command makes one configuration, not a sweep.
    values = parse(*sweep.run_command(cell, 8, tmp_path)[2:])
    assert not values.is_sweep
    configuration = read_configuration(values)
    assert (configuration.threads, configuration.seed, configuration.num_images) == (2, 5, 8)


def test_a_note_of_a_build_names_its_configuration(tiny, capsys, monkeypatch):
    def build(command, folder, **_):
        (folder / STDOUT).write_text("the artefact\n")
        (folder / STDERR).write_text("building\nnote: odd\nnote: odder\n")
        return Ended(0, False, 1.0, 0)

    monkeypatch.setattr("cambrian.commands.sweep.command.run_process", build)
    assert sweep_command(parse(*tiny, "--mesh", "1x2,2x1", "--mode", "compile"), ["python3", "main.py"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "the artefact\n" * 2
    assert printed.err.splitlines() == [
        *("building", "note: mesh 1x2: odd", "note: mesh 1x2: odder"),
        *("building", "note: mesh 2x1: odd", "note: mesh 2x1: odder"),
    ]


@pytest.mark.parametrize(
    ("given", "again"), [((), "the same command"), (("--fresh",), "the same command without --fresh")]
)
def test_an_interrupted_sweep_says_how_it_goes_on(tiny, tmp_path, capsys, monkeypatch, given, again):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cambrian.commands.sweep.command.run_sweep", interrupted)
    flags = parse(
        *tiny, "--mesh", "1x2,2x1", "--platform", "gpu", "--data", "synthetic", "--output_dir", tmp_path, *given
    )
    with pytest.raises(KeyboardInterrupt):
        sweep_command(flags, ["python3", "main.py"])
    assert capsys.readouterr().err == f"finished results are in {tmp_path}; {again} resumes\n"


def test_the_command_identifies_a_sweep_and_names_its_directory(tiny):
    base = (*tiny, "--mesh", "1x2,2x1", "--data", "synthetic")
    first, fresh = sweep_of(*base), sweep_of(*base, "--fresh", "--output_dir", "elsewhere")
    assert first.identity == fresh.identity == json.loads(json.dumps(first.identity))
    assert (str(fresh.path), first.path.parent.name) == ("elsewhere", "runs")
    other = sweep_of(*base, "--repeats", 5)
    assert other.identity["command"] != first.identity["command"] and other.path != first.path


def test_what_only_ranks_a_grid_isnt_of_its_identity(tiny):
    base = (*tiny, "--mesh", "1x2,2x1", "--data", "synthetic")
    ranking = ("--objective", "wall_ms", "--max_latency_ms", 5, "--min_top1", 0.5)
    first, other = sweep_of(*base), sweep_of(*base, *ranking)
    assert (other.identity, other.path) == (first.identity, first.path)
    assert (other.objective.key, other.objective.min_top1) == ("wall_ms", 0.5)
    assert other.resume == f"{first.resume.partition(' --output_dir ')[0]} --output_dir {first.path} " + (
        "--objective wall_ms --max_latency_ms 5.0 --min_top1 0.5"
    )
    auto = (*base, "--search", "auto")  # which chooses what to measure by them
    assert sweep_of(*auto).identity != sweep_of(*auto, *ranking).identity


def test_images_without_files_are_identified_without_a_digest(tiny):
    sweep = sweep_of(*tiny, "--mesh", "1x2,2x1", "--data", "synthetic")
    assert sweep.identity["environment"]["content of images"] == "synthetic images, seed 0"


def test_a_sweep_goes_on_only_with_the_weights_artefact_and_images_that_it_began_with(tiny, tmp_path, artifact):
    weights, images = tmp_path / "small.safetensors", tmp_path / "images"
    axes = ("--mesh", "1x2,2x1", "--data", images)

    def changed(arguments, change) -> set[str]:
        first = sweep_of(*arguments).identity
        assert sweep_of(*arguments).identity == first
        change()
        second = sweep_of(*arguments).identity
        assert (second["command"], second["model"]) == (first["command"], first["model"])
        return {name for name, value in second["environment"].items() if value != first["environment"][name]}

    write_images(images, ["a.png", "b.png"])
    write_checkpoint(weights, SMALL)
    of_weights = ("--weights", weights, *axes)
    assert changed(of_weights, lambda: write_checkpoint(weights, SMALL, seed=1)) == {"content of weights"}
    assert changed((*tiny, *axes), lambda: write_images(images, ["c.png"])) == {"content of images"}
    assert changed((*tiny, *axes), lambda: Image.new("RGB", (5, 5)).save(images / "a.png")) == {"content of images"}

    def of_a_classifier(**changes):
        manifest = json.loads((artifact / "manifest.json").read_text())
        manifest["metadata"] |= {"labels": [], "trained": False, "preprocessing": {}}
        manifest["files"]["parameters.safetensors"] |= changes
        (artifact / "manifest.json").write_text(json.dumps(manifest))

    of_a_classifier()
    of_artifact = ("--artifact", artifact, "--threads", "1,2", "--mode", "loadgen", "--data", "synthetic")
    assert changed(of_artifact, lambda: of_a_classifier(sha256=64 * "0")) == {"content of artifact"}


def test_a_default_is_said_where_the_config_says_otherwise():
    values = parse("--threads", "2", "--batch_size", "8,16")
    assert command_line(values, {"batch_size": 8}) == ["--threads", "2", "--batch_size", "8"]
    assert command_line(values, {"batch_size": 0, "mesh": "4x8"}) == ["--threads", "2", "--batch_size", "0"]
    values = dataclasses.replace(values, values={**values.values, "mesh": "1x2"})  # as --config does
    assert command_line(values, {"batch_size": None, "mesh": "4x8"}) == ["--mesh", "4x8", "--threads", "2"]
