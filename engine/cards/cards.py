"""Cards: the same executable in several processes of this host, used as one."""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from cambrian.engine.cards.card import FIRST_PATIENCE_S, Card, CardEnded
from cambrian.engine.cards.worker import ExecutableFacts, Make
from cambrian.engine.runtime.batch import check_inputs, empty_batch, num_samples, samples
from cambrian.engine.runtime.executable import Computed
from cambrian.engine.runtime.stream import Turn, stream
from cambrian.sharding import MIXES_SAMPLES, OutOfMemory
from cambrian.sharding.host import Share

_WAKE_S = 0.2  # a signal that arrives just before a wait doesn't end it


class CardsEnded(RuntimeError):
    """No card is left; the message says how each ended."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cards(ExecutableFacts):
    """Several processes with the same executable, each on devices of its own; used as an `Executable` is.

    A batch goes to the card of its host thread: thread i feeds card i mod N. When a card ends, its batches go to the
    others, so that each batch is answered once. A context manager that closes the cards; so does `close`, or the end of
    the interpreter.

    Attributes:
      cards: the processes.
    """

    cards: tuple[Card, ...] = dataclasses.field(repr=False)

    @classmethod
    def start(
        cls, shares: Sequence[Share], load: Make, build: Make | None = None, notes: Sequence[str] = ()
    ) -> tuple[Self, list[Any]]:
        """Starts a card on each share of the host, and waits until they are ready.

        A process that dies meanwhile is left out, with a note, as long as another one is ready.

        Args:
          shares: of the host, one for each card.
          load: makes the executable, in every card at once.
          build: makes it in one card where `load` failed; then the others load. None where there is nothing to build.
          notes: come before those of the executable.

        Returns:
          The cards, and the facts that each `Make` returned.

        Raises:
          CardsEnded, OutOfMemory: if all processes died.
          Whatever `load` raised, or `build` if it was called.
        """
        cards: list[Card] = []
        try:
            for index, share in enumerate(shares):
                cards.append(Card(index, share))
            outcomes = _ask(cards, load)
            failed = [card for card, outcome in outcomes.items() if isinstance(outcome, Exception)]
            while build is not None and failed:
                first, *failed = failed
                outcomes |= _ask([first], build)
                if not first.ended:  # else the next one builds
                    if not isinstance(outcomes[first], Exception):
                        outcomes |= _ask(failed, load)
                    break
            outcomes = {card: outcome for card, outcome in outcomes.items() if not card.ended}
            for outcome in outcomes.values():
                if isinstance(outcome, Exception):
                    raise outcome
            if not outcomes:
                raise _all_ended(cards)
        except BaseException:
            _close(cards)
            raise
        described = [card.description for card in outcomes]
        notes = [*notes, *(note for description in described for note in description.notes)]
        notes += [f"card {card.index} {card.ended} before it was ready" for card in cards if card.ended]
        fields: dict[str, Any] = {f.name: getattr(described[0], f.name) for f in dataclasses.fields(ExecutableFacts)}
        fields |= {"notes": tuple(dict.fromkeys(notes)), "cards": tuple(cards)}
        return cls(**fields), list(outcomes.values())

    def __post_init__(self) -> None:
        weakref.finalize(self, _close, self.cards)

    @property
    def batch_size(self) -> int:
        """Number of samples in one launch of a card."""
        return jax.tree.leaves(self.input_spec)[0].shape[0]

    @property
    def rows(self) -> range:
        """The samples of a launch: all of them."""
        return range(self.batch_size)

    @property
    def in_this_process(self) -> bool:
        """Whether it computes in this process: a thread that waits for a card may be abandoned."""
        return False

    @property
    def pending_probe(self) -> None:
        """None: each card has run the whole probe."""

    @property
    def peak_host_memory_bytes(self) -> int:
        """Sum of the cards' peaks of resident memory, as of their last batches."""
        return sum(card.peak_memory_bytes for card in self.cards)

    def compute(self, inputs: Any, thread: int = 0, turn: Turn | None = None) -> Computed:
        """Has the card of host thread `thread` compute up to `batch_size` inputs, or another one if that has ended.

        Args:
          turn: as `Executable.compute` takes it, decides nothing here.

        Raises:
          TypeError, UsageError: as `Executable.put`.
          CardsEnded: if no card is left; OutOfMemory, if all ended for want of memory.
        """
        check_inputs(inputs, self.input_spec, self.batch_size if MIXES_SAMPLES in self.metadata else 1)
        while running := [card for card in self.cards if not card.ended]:
            with contextlib.suppress(CardEnded):
                return running[thread % len(running)].compute(inputs)
        raise _all_ended(self.cards)

    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs (N, …) for inputs (N, …) of any N; all cards compute batches of them."""
        starts = range(0, num_samples(inputs), self.batch_size)
        check_inputs(inputs, self.input_spec, least=None)
        batches = (samples(inputs, start, start + self.batch_size) for start in starts)
        return jax.tree.map(lambda *parts: np.concatenate(parts), empty_batch(self.output_spec), *self.stream(batches))

    def stream(self, batches: Iterable[Any], threads: int | None = None) -> Iterator[Any]:
        """Yields the outputs of each batch (0 ≤ N ≤ `batch_size` inputs), in order.

        Reads only a few batches ahead of the consumer, so `batches` may be endless.

        Args:
          threads: number of host threads; None for two for each card. With fewer threads than cards, cards stay idle.
        """
        return stream(self, batches, threads=2 * len(self.cards) if threads is None else threads)

    def close(self) -> None:
        """Ends the processes, in the middle of a batch too."""
        _close(self.cards)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _ask(cards: Sequence[Card], make: Make) -> dict[Card, Any]:
    """Has cards make their executables, at once; returns the outcomes of those that live, in the order of `cards`.

    How long that takes isn't known, but once one of them is done, the others are hung if they take much longer.
    """
    for card in cards:
        card.ask(make)
    waiting = {card.control: card for card in cards}
    outcomes: dict[Card, Any] = {}
    patience_s = FIRST_PATIENCE_S
    while waiting:
        ready = wait(list(waiting), _WAKE_S)
        patience_s -= _WAKE_S if outcomes and not ready else 0
        if patience_s <= 0:
            for card in waiting.values():
                card.end("was not ready in time")
        for control in ready:
            assert isinstance(control, Connection)
            card = waiting.pop(control)
            with contextlib.suppress(CardEnded):
                outcomes[card] = card.answer()
    return {card: outcomes[card] for card in cards if card in outcomes}


def _all_ended(cards: Sequence[Card]) -> RuntimeError:
    ends = [f"card {card.index} {card.ended}" for card in cards]
    kind = OutOfMemory if all(card.out_of_memory for card in cards) else CardsEnded
    return kind(f"expected at least one card to compute on, got none: {', '.join(ends)}")


def _close(cards: Sequence[Card]) -> None:
    for card in cards:
        card.kill()
    for card in cards:
        card.end("was closed")
