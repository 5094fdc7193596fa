"""Accuracy from a confusion matrix: intervals against published values, classes without images, the picture."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from cambrian.commands.accuracy.accuracy import Accuracy, accuracy_text, wilson_interval
from cambrian.commands.accuracy.confusion import draw_confusion, with_images
from cambrian.commands.run.classify import Prediction
from cambrian.commands.run.predictions import PredictionFile


@pytest.mark.parametrize(
    ("hits", "num_trials", "expected"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. in Medicine 17 (1998), table I.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (1 - 0.1611, 1.0)),
    ],
)
def test_wilson_interval(hits, num_trials, expected):
    assert wilson_interval(hits, num_trials) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("hits", "num_trials"), [(0, 0), (-1, 3), (4, 3)])
def test_no_proportion(hits, num_trials):
    with pytest.raises(ValueError, match=f"got {hits} of {num_trials}"):
        wilson_interval(hits, num_trials)


def test_accuracy_of_a_confusion_matrix():
    # 4 cats, of which one is taken for a dog; 2 dogs, both taken for cats; no elk is there or predicted.
    confusion = np.array([[3, 1, 0], [2, 0, 0], [0, 0, 0]])
    accuracy = Accuracy.of(confusion, top5_hits=6, names=("cat", "dog", "elk"))
    assert (accuracy.num_images, accuracy.top1, accuracy.top5) == (6, 0.5, 1.0)
    assert accuracy.top1_interval_95 == wilson_interval(3, 6)
    cat, dog, elk = accuracy.classes
    assert (cat.label, cat.num_images, cat.recall, cat.precision) == ("cat", 4, 0.75, 0.6)
    assert cat.recall_interval_95 == wilson_interval(3, 4)
    assert (dog.num_images, dog.recall, dog.precision) == (2, 0.0, 0.0)
    assert (elk.num_images, elk.recall, elk.recall_interval_95, elk.precision) == (0, None, None, None)
    rows = list(csv.DictReader(io.StringIO(accuracy.classes_csv().decode())))
    assert [row["recall"] for row in rows] == ["0.750000", "0.000000", ""]


@pytest.mark.parametrize(("num_classes", "has_top5"), [(5, False), (6, True)])
def test_top_5_is_shown_where_it_can_be_wrong(num_classes, has_top5):
    accuracy = Accuracy.of(np.eye(num_classes, dtype=int), top5_hits=num_classes, names=["a"] * num_classes)
    assert accuracy.top5 == 1
    assert ("top-5 100.00% (95% interval" in accuracy_text(accuracy)) == has_top5


def test_tables_hold_any_name(tmp_path):
    names = ["carriage\rreturn", "line\nfeed", "both\r\n", 'comma, "quotes"', ""]
    table = Accuracy.of(np.eye(5, dtype=int), top5_hits=5, names=names).classes_csv().decode()
    assert [row["label"] for row in csv.DictReader(io.StringIO(table, newline=""))] == names
    with PredictionFile(tmp_path / "predictions.csv") as file:
        file.add([Prediction(name, None, name, 0.5, 0, (0,), (0.5,)) for name in names])
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert file.readline() == "image,label,predicted,probability\n"
        assert [row[0] for row in csv.reader(file)] == names


@pytest.mark.parametrize(
    "num_classes", [2, pytest.param(21, marks=pytest.mark.slow), pytest.param(61, marks=pytest.mark.slow)]
)
def test_the_picture_is_darkest_where_the_images_are(tmp_path, num_classes):
    names = ["a $ in a rather long name of a class", *map(str, range(1, num_classes))]
    draw_confusion(np.eye(num_classes, dtype=int) * 7, names, "all $ri_$ght", tmp_path / "all.png")
    draw_confusion(np.zeros((num_classes, num_classes), int), names, "nothing", tmp_path / "none.png")
    full, empty = (np.asarray(Image.open(tmp_path / name).convert("L")) for name in ("all.png", "none.png"))
    assert full.shape == empty.shape and min(full.shape) > 400
    assert full.mean() < empty.mean()


def test_long_names_of_classes_are_cut(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "cambrian.commands.accuracy.confusion.write_figure", lambda figure, path: figures.append(figure)
    )
    names = ["German_shorthaired_pointer", "$_$", "exactly 18 letters"]
    draw_confusion(np.eye(3, dtype=int), names, "dogs", tmp_path / "dogs.png")
    axes = figures[0].axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["German_shorthaire…", "$_$", "exactly 18 letters"]


def test_a_long_title_stays_within_the_picture_and_a_letter_that_the_font_lacks_warns_of_nothing(tmp_path):
    title = "a_network_with_a_rather_long_name, bfloat16: top-1 86.20% of 10000 images"
    draw_confusion(np.eye(2, dtype=int), ["猫", "犬"], title, tmp_path / "long.png")
    with Image.open(tmp_path / "long.png") as picture:
        edges = np.asarray(picture.convert("L"))[:, [0, -1]]
    assert edges.min() == 255


def test_the_picture_leaves_out_classes_without_images(tmp_path):
    confusion = np.array([[5, 1, 2, 0], [0, 0, 0, 0], [1, 3, 4, 1], [0, 0, 0, 0]])
    shown, rows, columns = with_images(confusion, ["ant", "bee", "cow", "dog"])
    np.testing.assert_array_equal(shown, [[5, 2, 1], [1, 4, 4]])
    assert (rows, columns) == (["ant", "cow"], ["ant", "cow", "other classes"])
    draw_confusion(confusion, ["ant", "bee", "cow", "dog"], "a subset", tmp_path / "subset.png")
    with Image.open(tmp_path / "subset.png") as picture:
        assert min(picture.size) > 400
