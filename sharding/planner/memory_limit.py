"""The fastest plan whose weights and working memory fit a device."""

import dataclasses
import math
from collections.abc import Iterable

from cambrian.sharding.errors import OutOfMemory
from cambrian.sharding.planner.costs import Option
from cambrian.sharding.planner.trellis import Choices, Options, Trellis

_NUM_WORKING_LIMITS = 4
_NUM_PRICES = 20
_GAP = 0.003  # relative distance of the best plan to its lower bound below which the search is skipped
_MAX_STEPS = 200_000  # of the search


def memory_bytes(choices: Choices) -> int:
    """Returns the bytes that a device needs: all weights, and the largest working memory of a layer."""
    return _weight_bytes(choices) + max(option.working_bytes for _, option in choices)


def fastest_within(trellis: Trellis, limit_bytes: int) -> Choices:
    """Finds the fastest choices that need at most `limit_bytes`.

    A Lagrange multiplier, the price of a byte of weights in milliseconds, turns the limit into a cost. Under each of
    several limits on working memory, the lowest price is found at which the fastest plan fits. Each price also gives a
    lower bound on the time of all plans that fit. If the best plan isn't close to the bound, a branch-and-bound search
    looks for a better one; in a large network the number of steps cuts the search short.

    Raises:
      OutOfMemory: if no plan fits.
    """
    working_limits = _working_limits(trellis, limit_bytes)
    most = working_limits[0]
    least_working = max(min(o.working_bytes for o in _within(options, most)) for options in trellis.options)
    best = _Priced(0.0, math.inf, [])
    bound_ms, bound_price = 0.0, 0.0
    for working_limit in working_limits:
        for plan in _priced_plans(trellis, working_limit, limit_bytes, best.milliseconds):
            if working_limit == most:
                plan_bound_ms = plan.priced_ms(plan.byte_price) - plan.byte_price * (limit_bytes - least_working)
                bound_ms, bound_price = max((bound_ms, bound_price), (plan_bound_ms, plan.byte_price))
            if plan.milliseconds < best.milliseconds and memory_bytes(plan.choices) <= limit_bytes:
                best = plan
    if best.milliseconds * (1 - _GAP) <= bound_ms:
        return best.choices
    return _search(trellis, limit_bytes, most, least_working, bound_price, best)


@dataclasses.dataclass(frozen=True, slots=True)
class _Priced:
    """The fastest plan at a price per byte of weights."""

    byte_price: float
    milliseconds: float
    choices: Choices

    def priced_ms(self, byte_price: float) -> float:
        return self.milliseconds + byte_price * _weight_bytes(self.choices)


def _weight_bytes(choices: Choices) -> int:
    return sum(option.weight_bytes for _, option in choices)


def _within(options: Options, working_limit: float) -> Iterable[Option]:
    for by_micro_batch in options.values():
        for found in by_micro_batch:
            yield from (option for option in found if option.working_bytes <= working_limit)


def _working_limits(trellis: Trellis, limit_bytes: int) -> list[int]:
    """Returns a few limits on the working memory of a layer, descending, each of which some plan fits."""
    workings = {option.working_bytes for options in trellis.options for option in _within(options, math.inf)}
    required = {working: working + sum(_least_weights(trellis, working)) for working in sorted(workings)}
    fitting = [working for working, total in required.items() if total <= limit_bytes][::-1]
    if not fitting:
        raise OutOfMemory(
            f"a device must hold at least {min(required.values())} bytes for weights and the working memory of a "
            f"layer, got a limit of {limit_bytes}"
        )
    last, parts = len(fitting) - 1, _NUM_WORKING_LIMITS - 1
    return [fitting[index] for index in sorted({round(last * part / parts) for part in range(parts + 1)})]


def _least_weights(trellis: Trellis, working_limit: float) -> list[float]:
    """Returns the least weight bytes of each layer; infinite if no option keeps to the working limit."""
    least: dict[int, float] = {}  # layers of equal geometry share their options
    for options in trellis.options:
        if id(options) not in least:
            weights = (option.weight_bytes for option in _within(options, working_limit))
            least[id(options)] = min(weights, default=math.inf)
    return [least[id(options)] for options in trellis.options]


def _priced_plans(trellis: Trellis, working_limit: int, limit_bytes: int, best_ms: float) -> Iterable[_Priced]:
    """Yields the fastest plans at prices that converge to the lowest one at which a plan fits."""

    def fastest(price: float) -> _Priced:
        return _Priced(price, *trellis.shortest(price, working_limit))

    def fits(plan: _Priced) -> bool:
        return memory_bytes(plan.choices) <= limit_bytes

    yield (low := fastest(0.0))
    if fits(low) or low.milliseconds >= best_ms:  # a higher price never gives a faster plan
        return
    yield (high := fastest(low.milliseconds / limit_bytes))
    while not fits(high):  # terminates: a high price leads to the least weights, which fit
        low = high
        yield (high := fastest(8 * low.byte_price))
    for _ in range(_NUM_PRICES):
        saved = _weight_bytes(low.choices) - _weight_bytes(high.choices)
        if saved <= 0:
            return
        # At the price at which both plans cost the same, either no plan is cheaper or one between them is.
        price = (high.milliseconds - low.milliseconds) / saved
        yield (between := fastest(price))
        if between.priced_ms(price) >= low.priced_ms(price) * (1 - 1e-9):
            return
        low, high = (low, between) if fits(between) else (between, high)


@dataclasses.dataclass(frozen=True, slots=True)
class _Node:
    """A path from a node of the trellis to the end of the network."""

    bound_ms: float  # lower bound on all plans that end in this path
    layer: int  # number of layers before the node
    state: int
    micro_batch: int
    milliseconds: float = 0.0
    weight_bytes: int = 0
    working_bytes: int = 0
    choices: tuple = ()  # (choice, the choices after it)


def _search(
    trellis: Trellis, limit_bytes: int, working_limit: int, least_working: int, price: float, best: _Priced
) -> Choices:
    table = trellis.distances(price, working_limit)
    least_before = [0.0]
    for least in _least_weights(trellis, working_limit):
        least_before.append(least_before[-1] + least)
    best_ms, best_choices, num_steps = best.milliseconds, best.choices, 0
    stack = [
        _Node(-math.inf, len(trellis.stages), state, m)
        for state, vector in enumerate(table[-1])
        for m, distance in enumerate(vector)
        if distance < math.inf
    ]
    while stack and num_steps < _MAX_STEPS:
        node = stack.pop()
        if node.bound_ms >= best_ms:
            continue
        if node.layer == 0:
            if node.milliseconds < best_ms:
                best_ms, best_choices = node.milliseconds, _flat(node.choices)
            continue
        layer, found = node.layer - 1, []
        for step in trellis.steps_to(layer, node.state, node.micro_batch, table, price, working_limit):
            num_steps += 1
            weight_bytes = node.weight_bytes + step.option.weight_bytes
            working_bytes = max(node.working_bytes, step.option.working_bytes)
            left = limit_bytes - max(working_bytes, least_working)  # for weights
            bound_ms = step.bound + node.milliseconds + price * (node.weight_bytes - left)
            if weight_bytes + least_before[layer] <= left and bound_ms < best_ms:
                ms, choices = node.milliseconds + step.milliseconds, ((step.partition, step.option), node.choices)
                found.append(
                    _Node(bound_ms, layer, step.state, step.micro_batch, ms, weight_bytes, working_bytes, choices)
                )
        stack += sorted(found, key=lambda node: -node.bound_ms)  # the most promising one is popped next
    return best_choices


def _flat(choices: tuple) -> Choices:
    flat = []
    while choices:
        choice, choices = choices
        flat.append(choice)
    return flat
