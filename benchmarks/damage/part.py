"""What a part of the benchmark of faults is, and how bytes are mutated."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

OUTCOMES = ("right", "refused", "lost", "crashed", "hung")


class Part(Protocol):
    """One kind of damage. Cases run in processes of their own; parts are pickled."""

    @property
    def hung_after_s(self) -> float:
        """Seconds without a word of a case after which it is hung."""
        ...

    def prepare(self, folder: Path) -> None:
        """Writes the undamaged original; runs once, in a process of its own."""
        ...

    def case(self, folder: Path, number: int, chance: random.Random, tell: Callable[[str], None]) -> str:
        """Damages a copy, uses it, and returns the outcome; `tell` takes what is damaged, before it is used."""
        ...


def mutate(
    data: bytes, chance: random.Random, num_head_bytes: int = 0, others: Sequence[bytes] = ()
) -> tuple[str, bytes]:
    """Damages bytes in one place, in half of the cases among the first `num_head_bytes`, or swaps them for others.

    Returns:
      What was done, and the damaged bytes.
    """
    kind = chance.choice(["bit", "byte", "length", "truncation", "swap"][: 5 if others else 4])
    end = min(num_head_bytes, len(data)) if num_head_bytes and chance.random() < 0.5 else len(data)
    position = chance.randrange(end)
    damaged = bytearray(data)
    match kind:
        case "bit":
            damaged[position] ^= 1 << chance.randrange(8)
        case "byte":
            damaged[position] = chance.randrange(256)
        case "length" if chance.random() < 0.5:
            del damaged[position : position + chance.randint(1, 64)]
        case "length":
            damaged[position:position] = chance.randbytes(chance.randint(1, 64))
        case "truncation":
            del damaged[position:]
        case "swap":
            return kind, chance.choice(others)
    return f"{kind} at {position}", bytes(damaged)
