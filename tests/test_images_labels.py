"""Class folders are matched to the labels of a model."""

import re

import pytest

from cambrian.commands.images.labels import find_labels, number_classes
from cambrian.sharding import UsageError
from image_cases import names_and_labels, open_images, write


def test_classes_are_matched_to_labels_by_name(classes):
    labels = ("dog", "frog", "Cat", "blue bird")
    source, notes = open_images(classes, labels=labels)
    assert [image.label for image in source] == [3, 2, 0, 0]
    assert (source.class_names, notes) == (labels, [])


def test_labels_are_compared_by_their_closest_form():
    labels = ("n02012849 crane", "n03126707 crane, derrick", "n01440764 tench, Tinca tinca", "maillot", "maillot, suit")
    names = ("crane", "derrick", "tinca_TINCA", "n03126707", "n01440764 tench, Tinca tinca", "Maillot", "suit")
    assert find_labels(names, labels) == [0, 1, 2, 1, 2, 3, 4]
    assert find_labels(("blue bird", "Blue-Bird", "_"), ("blue_bird", "BlueBird", "-")) == [None, None, None]
    assert find_labels(("BlueBird",), ("blue_bird", "BlueBird")) == [1]


def test_decomposed_accents_are_those_of_the_label():
    composed, decomposed = "\N{LATIN CAPITAL LETTER E WITH ACUTE}", "E\N{COMBINING ACUTE ACCENT}"
    labels = (f"{composed}cureuil", f"{composed.lower()}cureuil")
    assert find_labels((f"{decomposed}cureuil", f"{decomposed.lower()}cureuil"), labels) == [0, 1]
    assert find_labels((f"{decomposed}_CUREUIL",), labels[1:]) == [0]
    assert find_labels((labels[0],), (f"{decomposed}cureuil",)) == [0]


def test_fewer_classes_than_labels_keep_their_logits(classes):
    labels = ("ant", "dog", "bee", "cat", "blue bird")
    source, notes = open_images(classes, labels=labels, num_logits=5)
    assert [image.label for image in source] == [4, 3, 1, 1]
    assert (source.class_names, notes) == (labels, [])


@pytest.mark.parametrize("labels", [("dog", "cat", "tree"), ("dog", "cat", "blue bird", "blue-bird"), ("a", "b", "c")])
def test_a_class_that_is_not_exactly_one_label_is_refused_with_the_closest(classes, labels):
    with pytest.raises(UsageError, match=f"exactly one of the model's {len(labels)} labels, got 'Blue_Bird'"):
        open_images(classes, labels=labels)


def test_mismatched_classes_are_listed_with_the_closest_labels(tmp_path):
    for name in ("aeroplane", "cat", "trucks", "n01440764"):
        write(tmp_path / name / "a.png")
    expected = (
        "each class must be exactly one of the model's 3 labels, got 'aeroplane' (closest: 'airplane'), "
        "'n01440764' (closest: "
    )
    with pytest.raises(UsageError, match=re.escape(expected)) as raised:
        open_images(tmp_path, labels=("airplane", "cat", "truck"))
    message = str(raised.value)
    assert (
        "'trucks' (closest: 'truck')" in message
        and "; the labels come without WordNet ids; the images of one folder" in message
    )


def test_folders_named_by_numbers_are_sorted_as_numbers(tmp_path):
    for number in range(11):
        write(tmp_path / str(number) / "a.png")
    source, _ = open_images(tmp_path, num_logits=11)
    assert names_and_labels(source) == [(f"{number}/a.png", number) for number in range(11)]


def test_numbers_name_the_logits_of_a_model_without_labels(tmp_path):
    for number in ("2", "007", "10"):
        write(tmp_path / number / "a.png")
    source, notes = open_images(tmp_path, num_logits=11)
    assert names_and_labels(source) == [("2/a.png", 2), ("007/a.png", 7), ("10/a.png", 10)]
    assert source.class_names == ("0", "1", "2", "3", "4", "5", "6", "007", "8", "9", "10")
    assert notes == [
        "the folders' numbers are taken to be those of the logits; torchvision's ImageFolder orders them as text"
    ]


def test_numbers_that_sort_as_text_need_no_note(tmp_path):
    for number in ("0", "1", "2"):
        write(tmp_path / number / "a.png")
    assert open_images(tmp_path)[1] == []


def test_a_class_may_be_named_as_a_split_is(tmp_path):
    for name in ("bus/a.png", "car/b.png", "train/c.png"):
        write(tmp_path / name)
    source, _ = open_images(tmp_path, split="train", splits_optional=True)
    assert names_and_labels(source) == [("bus/a.png", 0), ("car/b.png", 1), ("train/c.png", 2)]
    write(tmp_path / "splits" / "train" / "cat" / "d.png")
    write(tmp_path / "splits" / "extra" / "cat" / "e.png")
    assert names_and_labels(open_images(tmp_path / "splits", split="train")[0]) == [("cat/d.png", 0)]


def test_classes_that_number_no_logits_give_no_accuracy(tmp_path):
    for number in ("1", "10"):
        write(tmp_path / "numbers" / number / "a.png")
        write(tmp_path / "names" / f"class {number}" / "a.png")
    for folder in (tmp_path / "numbers", tmp_path / "names"):
        source, notes = open_images(folder, num_logits=10)
        assert [image.label for image in source] == [0, 1] and len(source.class_names or ()) == 2
        assert notes == ["no accuracy: the model has 10 logits without labels, the data 2 classes"]


def test_folders_of_imagenet_are_those_of_labels_without_wordnet_ids():
    ids = [f"n{number:08}" for number in range(1000)]
    labels = ("tench, Tinca tinca", *(f"label {number}" for number in range(1, 1000)))
    numbers, names, (note,) = number_classes((ids[2], *ids[:2], *ids[3:]), labels, 1000)
    assert (numbers[:4], names) == ((2, 0, 1, 3), labels)
    assert note.startswith("the labels lack WordNet ids")
    for folders, others in ((ids[:999], labels), (ids, ("a", *labels[1:])), ((*ids[:999], "cat"), labels)):
        with pytest.raises(UsageError, match="each class must be exactly one of the model's 1000 labels"):
            number_classes(folders, others, 1000)
