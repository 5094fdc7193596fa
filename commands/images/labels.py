"""Numbers the classes of a data set as the weights do."""

from collections import defaultdict
from collections.abc import Sequence


def match_labels(
    class_names: Sequence[str], labels: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...], list[str]]:
    """Finds the number of each class among the weights' labels.

    Names are compared without regard to case and to `_`, `-` and spaces. Where a name is not found exactly once, all
    classes are numbered in their own order instead.

    Args:
      labels: the weights' labels in the order of the logits; empty if unknown.

    Returns:
      The number of each class, the names that the numbers index into, and notes.
    """
    in_order = tuple(range(len(class_names))), tuple(class_names)
    if not labels:
        return *in_order, []
    positions = defaultdict(list)
    for position, label in enumerate(labels):
        positions[_key(label)].append(position)
    unmatched = [name for name in class_names if len(positions[_key(name)]) != 1]
    if not unmatched:
        return tuple(positions[_key(name)][0] for name in class_names), labels, []
    note = (
        f"class {unmatched[0]!r} is not exactly one of the weights' {len(labels)} labels: "
        f"the {len(class_names)} classes are numbered in sorted order"
    )
    if len(class_names) != len(labels):
        note += ", though their number differs, so accuracy means nothing"
    return *in_order, [note]


def _key(name: str) -> str:
    return name.casefold().translate({ord(character): None for character in "_- "})
