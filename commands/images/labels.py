"""Numbers the classes of a data set by the logits of a model."""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cambrian.sharding import UsageError

_WORDNET_ID = re.compile(r"(n\d{8})(?:\s+|$)")  # ImageNet's name of a class
_IMAGENET_CLASSES = 1000
_MAX_LISTED = 5


class Numbering(NamedTuple):
    """How the classes of a data set are numbered.

    Attributes:
      numbers: of each class; they number the logits unless a note says that there is no accuracy.
      names: the names that the numbers index into.
      notes: assumptions, or the reason why there is no accuracy.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_labels(class_names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """Finds the position of each class among the labels; None if no label, or more than one, has its name.

    Names are compared without regard to case, `_`, `-` and spaces, and composed, as some file systems and archives
    decompose accents. A label also goes by its WordNet id and by each of its synonyms: `n01440764 tench, Tinca tinca`
    is found as `n01440764`, `tench, Tinca tinca`, `tench` and `Tinca tinca`. The closer form wins: `crane` is the label
    `crane`, not `crane, derrick`.
    """
    exact, whole, parts = defaultdict(set), defaultdict(set), defaultdict(set)
    for position, label in enumerate(labels):
        words = _WORDNET_ID.sub("", label)
        exact[_composed(label)].add(position)
        _add(whole, position, (label, words))
        _add(parts, position, (*_WORDNET_ID.findall(label), *words.split(",")))

    def find(name: str) -> int | None:
        key = _key(name)
        found = exact.get(_composed(name)) or whole.get(key) or parts.get(key) or ()
        return next(iter(found)) if len(found) == 1 else None

    return [find(name) for name in class_names]


def number_classes(class_names: Sequence[str], labels: tuple[str, ...], num_logits: int) -> Numbering:
    """Numbers classes by the labels of a model; without labels, by the numbers that they are named by, else in order.

    Args:
      labels: the model's, in the order of the logits; empty if unknown.

    Raises:
      UsageError: if the model has labels and a class isn't exactly one of them.
    """
    if labels:
        found = find_labels(class_names, labels)
        unmatched = [name for name, number in zip(class_names, found, strict=True) if number is None]
        if _is_imagenet(class_names) and labels[0].startswith("tench") and len(unmatched) == len(labels):
            order = sorted(class_names)
            note = "the labels lack WordNet ids: the folders are taken to be ImageNet's classes in the order of theirs"
            return Numbering(tuple(map(order.index, class_names)), labels, (note,))
        if unmatched:
            raise UsageError(_mismatch(unmatched, labels))
        return Numbering(tuple(number for number in found if number is not None), labels)
    numbers = tuple(int(name) for name in class_names if is_number(name))
    if len(class_names) == len(set(numbers)) and max(numbers) < num_logits:
        names = [str(number) for number in range(num_logits)]
        for number, name in zip(numbers, class_names, strict=True):
            names[number] = name
        as_text = sorted(class_names) != sorted(class_names, key=int)
        note = "the folders' numbers are taken to be those of the logits; torchvision's ImageFolder orders them as text"
        return Numbering(numbers, tuple(names), (note,) if as_text else ())
    if len(class_names) == num_logits:
        note = (
            f"the model has no labels: its {num_logits} logits are taken to be the classes in the order of their "
            f"{'numbers' if all(map(is_number, class_names)) else 'names'}"
        )
    else:
        note = f"no accuracy: the model has {num_logits} logits without labels, the data {len(class_names)} classes"
    return Numbering(tuple(range(len(class_names))), tuple(class_names), (note,))


def is_number(name: str) -> bool:
    """Whether a class is named by a number, such as `7` or `007`."""
    return name.isascii() and name.isdecimal()


def _is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether these are as many WordNet ids as ImageNet has classes, which number its logits in their order."""
    return len(class_names) == _IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, class_names))


def _mismatch(unmatched: Sequence[str], labels: Sequence[str]) -> str:
    label_of_key = {_key(label): label for label in labels}
    listed = []
    for name in unmatched[:_MAX_LISTED]:
        (closest,) = difflib.get_close_matches(_key(name), label_of_key, 1, cutoff=0)
        listed.append(f"{name!r} (closest: {label_of_key[closest]!r})")
    more = f" and {len(unmatched) - _MAX_LISTED} more" if len(unmatched) > _MAX_LISTED else ""
    hint = ""
    if any(map(_WORDNET_ID.match, unmatched)) and not any(map(_WORDNET_ID.match, labels)):
        hint = "; the labels come without WordNet ids"
    return (
        f"each class must be exactly one of the model's {len(labels)} labels, got {', '.join(listed)}{more}{hint}; "
        "the images of one folder without subfolders need no labels"
    )


def _add(positions: dict[str, set[int]], position: int, names: Iterable[str]) -> None:
    for name in names:
        if key := _key(name):
            positions[key].add(position)


def _key(name: str) -> str:
    return _composed(name.casefold()).translate({ord(character): None for character in "_- "})


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
