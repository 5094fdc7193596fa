"""Images and weights that the user brings to the command."""

import json
import os
import shutil
import signal
import sys

import pytest

from cambrian.engine.runtime.metrics import Timeline
from cambrian.models.resnet.architecture import Architecture
from command import CommandHere, read_predictions, read_report, write_checkpoint, write_images

BATCH_SIZE = 8


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return CommandHere(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def small(command):
    return [*command.small_flags(), "--mesh", "2x2"]


@pytest.fixture
def photos(tmp_path):
    """Unlabelled images, one of which is a text file."""
    folder = tmp_path / "photos"
    write_images(folder, [f"{index}.png" for index in range(9)])
    (folder / "5b.jpg").write_text("not an image at all")
    return folder


def test_a_text_file_named_jpg_ends_the_run(command, small, photos, tmp_path):
    outcome = command(*small, "--data", photos, "--output_dir", tmp_path / "output")
    assert outcome.exit_code == 2
    reason = (
        f"expected a readable JPEG or PNG image, got {photos / '5b.jpg'}: not a JPEG or PNG file; "
        "skip_bad_images leaves such images out"
    )
    assert outcome.error == reason
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    assert (report["status"], report["failure_reason"]) == ("failed", f"UnreadableImage: {reason}")


def test_bad_images_are_skipped_counted_and_listed_on_request(command, small, photos):
    run = command.run(*small, "--data", photos, "--skip_bad_images")
    assert run.report["num_images"] == 9
    assert run.report["skipped_images"] == [f"{photos / '5b.jpg'}: not a JPEG or PNG file"]
    unlabelled, skipped = (f"no accuracy: the images in {photos} have no labels", "1 unreadable image skipped, listed")
    assert unlabelled in run.outcome.notes and run.outcome.notes[-1].startswith(skipped)
    assert run.report["notes"] == run.outcome.notes
    assert "1 unreadable image\n" in run.outcome.stdout
    assert [row["image"] for row in run.predictions] == [f"{index}.png" for index in range(9)]
    assert {row["label"] for row in run.predictions} == {""}
    assert run.report["top1"] is None
    assert {row["predicted"] for row in run.predictions} <= set(map(str, range(10)))


def test_a_note_is_one_line_whatever_names_it_holds(command, small, tmp_path):
    write_images(tmp_path / "photos", ["0.png"])
    (tmp_path / "photos" / "x.a\nb").touch()
    run = command.run(*small, "--data", tmp_path / "photos")
    assert f"ignored what isn't a JPEG or PNG image in {tmp_path / 'photos'}: 1 .a b" in run.outcome.notes


def test_an_interrupt_while_a_run_is_summed_up_leaves_its_sums(command, small, tmp_path, monkeypatch):
    def interrupted(timeline):
        signal.raise_signal(signal.SIGINT)
        return summary(timeline)

    summary = Timeline.summary
    monkeypatch.setattr(Timeline, "summary", interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)  # by which the command ends after an interrupt
    outcome = command(*small, "--data", "synthetic", "--num_images", 9, "--output_dir", tmp_path / "output")
    assert (outcome.exit_code, outcome.error) == (130, "interrupted")
    report = read_report(tmp_path / "output")
    assert (report["status"], report["num_images"]) == ("interrupted", 9) and report["images_per_second"] > 0
    assert len(read_predictions(tmp_path / "output")) == 9


def test_a_run_without_a_readable_image_fails(command, small, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("not an image at all")
    output_dir = tmp_path / "output"
    outcome = command(*small, "--data", tmp_path / "photos", "--skip_bad_images", "--output_dir", output_dir)
    reason = f"RuntimeError: expected at least one readable image, got none in folder {tmp_path / 'photos'}"
    assert (outcome.exit_code, outcome.error) == (1, reason)
    report = read_report(output_dir)
    assert (report["status"], report["failure_reason"], report["num_images"]) == ("failed", reason, 0)
    assert report["first_inference_ms"] is None and report["latency_ms_p50"] is None
    assert [*map(len, (report["skipped_images"], read_predictions(output_dir)))] == [1, 0]


def test_a_launch_that_is_mostly_padding_is_noted(command, small):
    def run(num_images, *flags):
        run = command.run(*small, "--data", "synthetic", "--num_images", num_images, *flags)
        notes = [note for note in run.report["notes"] if "padding" in note]
        assert set(notes) <= set(run.outcome.notes)
        return run.report["batch_size"], notes

    batch_size, notes = run(3)
    assert notes == [f"of {batch_size} images of a launch {batch_size - 3} are padding: --batch_size 4 fits 3 images"]
    half = batch_size // 2
    assert len(run(half)[1]) == 1 and run(half + 1)[1] == []
    assert run(3, "--batch_size", BATCH_SIZE) == (BATCH_SIZE, [])


def test_a_split_and_a_number_of_labelled_images(command, small, tmp_path):
    names = [f"{split}/{label}/{index}.png" for split in ("train", "test") for label in "ab" for index in range(4)]
    write_images(tmp_path, names)
    run = command.run(*small, "--data", tmp_path, "--split", "train", "--num_images", 4)
    assert [row["image"] for row in run.predictions] == ["a/0.png", "a/2.png", "b/0.png", "b/2.png"]
    assert [row["label"] for row in run.predictions] == ["a", "a", "b", "b"]
    assert run.report["data"] == f"4 of 8 images of folder {tmp_path / 'train'}"
    assert run.report["top1"] is None
    assert "no accuracy: the model has 10 logits without labels, the data 2 classes" in run.report["notes"]


def test_accuracy_where_the_classes_are_as_many_as_the_logits(command, small, tmp_path):
    write_images(tmp_path, [f"{label}/{index}.png" for label in "abcdefghij" for index in range(2)])
    run = command.run(*small, "--data", tmp_path)
    assert any(note.startswith("the model has no labels: its 10 logits are taken") for note in run.report["notes"])
    hits = sum(row["label"] == row["predicted"] for row in run.predictions)
    assert {row["predicted"] for row in run.predictions} <= set("abcdefghij")
    assert run.report["top1"] == hits / 20 <= run.report["top5"] <= 1


def test_images_are_resized_as_the_weights_stem_asks(command, tmp_path):
    weights = write_checkpoint(tmp_path / "weights.safetensors", Architecture("imagenet", (1,), False, 3, width=4))
    write_images(tmp_path / "photos", ["a.png"])
    flags = ("--mesh", "1x1", "--batch_size", 1, "--data", tmp_path / "photos")
    run = command.run("--weights", weights, *flags)
    manifests = [json.loads((path / "manifest.json").read_text()) for path in command.artifacts]
    (manifest,) = [manifest for manifest in manifests if manifest["metadata"]["weights"] == str(weights)]
    preprocessing = manifest["metadata"]["preprocessing"]
    assert (preprocessing["size"], preprocessing["resize_to"]) == ([224, 224], [256, 256])
    assert manifest["input_spec"]["shape"] == [1, 224, 224, 3]
    assert run.report["num_images"] == 1
    assert any("becomes 256 pixels" in note and "--resize 232" in note for note in run.report["notes"])
    smaller = command.run("--weights", weights, *flags, "--image_size", 48)
    assert any("becomes 55 pixels" in note and "--resize 50" in note for note in smaller.report["notes"])


def test_resize_decides_where_the_weights_do_not(command, tmp_path):
    weights = write_checkpoint(tmp_path / "weights.safetensors", Architecture("imagenet", (1,), False, 3, width=4))
    write_images(tmp_path / "photos", ["a.png"])
    flags = ("--weights", weights, "--mesh", "1x1", "--batch_size", 1, "--data", tmp_path / "photos")
    run = command.run(*flags, "--image_size", 112, "--resize", 117)
    assert not any("--resize" in note for note in run.report["notes"])
    manifests = [json.loads((path / "manifest.json").read_text()) for path in command.artifacts]
    (manifest,) = [manifest for manifest in manifests if manifest["metadata"]["weights"] == str(weights)]
    preprocessing = manifest["metadata"]["preprocessing"]
    assert (preprocessing["size"], preprocessing["resize_to"]) == ([112, 112], [117, 117])


def test_the_report_names_the_weights_by_the_path_that_was_given(command, small, tmp_path):
    _, weights, *others = small
    command.run(*small, "--num_images", 2)
    copy = shutil.copy(weights, tmp_path)
    run = command.run("--weights", copy, *others, "--num_images", 2)
    assert run.report["build_ms"] is None and run.report["weights"] == copy


@pytest.mark.parametrize("num_images", [1, BATCH_SIZE - 1, BATCH_SIZE, BATCH_SIZE + 1])
def test_any_number_of_images(command, small, num_images):
    more, fewer = (
        command.run(*small, "--batch_size", BATCH_SIZE, "--threads", 3, "--data", "synthetic", "--num_images", number)
        for number in (20, num_images)
    )
    assert (more.report["num_images"], fewer.report["num_images"]) == (20, num_images)
    assert fewer.predictions == more.predictions[:num_images]


def test_class_folders_that_are_no_labels_end_the_run(command, tmp_path):
    write_images(tmp_path, ["ant/0.png", "cats/0.png"])
    outcome = command("--config", "tiny.py", "--mesh", "1x2", "--batch_size", 8, "--data", tmp_path)
    assert outcome.exit_code == 2
    assert "exactly one of the model's 10 labels, got 'cats' (closest: 'ant')" in outcome.error


def test_a_partition_asked_for_is_the_one_that_runs(command, small, photos):
    (photos / "5b.jpg").unlink()
    run = command.run(*small, "--partition", "rows", "--data", photos)
    plan = run.report["plan"]
    assert {entry["partition"] for name, entry in plan.items() if name not in ("mean_pool", "fc")} == {"rows"}
    assert 0.99 < run.report["intra_sample_flops_fraction"] <= 1
    assert run.report["parity_max_relative_error"] < 1e-4
