"""A cost table: measured times of cases and of transitions, and what it estimates of those that weren't measured."""

import bisect
import collections
import dataclasses
import itertools
import math
import statistics

import jax.numpy as jnp

from cambrian.models.costs.layer_case import LayerCase

# Where nothing comparable was measured: operations and bytes a second of one device with the machine to itself, and
# milliseconds to start a layer or a collective. Nominal figures of a CPU core pair and of a data-centre GPU or TPU.
_NOMINAL = {"cpu": (1e11, 1e10, 0.02), "gpu": (1e14, 1e12, 0.005), "tpu": (1e14, 1e12, 0.005)}


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """A change of layout, or a collective inside a layer, over the model axis of a mesh.

    Attributes:
      operation: `SOURCE>TARGET` layouts, `halo`, `sum`, or `loop`: written out and read again in other chunks.
      mesh: as MODELxDATA.
      values: of the whole tensor of one group, or that are exchanged or summed by each device.
    """

    operation: str
    mesh: str
    values: int
    dtype: str


@dataclasses.dataclass(slots=True)
class CostTable:
    """Times in milliseconds.

    Attributes:
      machine: what they were measured on, in words: device, versions.
    """

    platform: str
    machine: dict[str, str]
    cases: dict[LayerCase, float] = dataclasses.field(default_factory=dict)
    transitions: dict[Transition, float] = dataclasses.field(default_factory=dict)
    _alike: dict[tuple, list[LayerCase]] = dataclasses.field(default_factory=dict)
    _estimates: dict[LayerCase | Transition, float] = dataclasses.field(default_factory=dict)

    def add(self, measured: LayerCase | Transition, milliseconds: float) -> None:
        """Takes a measurement in."""
        self._estimates.clear()
        if isinstance(measured, Transition):
            self.transitions[measured] = milliseconds
        else:
            self.cases[measured] = milliseconds
            self._alike.setdefault(_family(measured), []).append(measured)

    def filled_up(self, base: "CostTable") -> "CostTable":
        """This table and what only `base` has, by the ratio of both in what both have: the median of those alike."""
        own: dict[LayerCase | Transition, float] = {**self.cases, **self.transitions}
        others: dict[LayerCase | Transition, float] = {**base.cases, **base.transitions}
        ratios = collections.defaultdict(list)
        for measured, milliseconds in others.items():
            if measured in own:
                ratios[_family(measured)].append(own[measured] / milliseconds)
        of_family = {family: statistics.median(found) for family, found in ratios.items()}
        of_all = statistics.median(itertools.chain.from_iterable(ratios.values())) if ratios else 1.0
        full = CostTable(self.platform, self.machine)
        for measured, milliseconds in own.items():
            full.add(measured, milliseconds)
        for measured, milliseconds in others.items():
            if measured not in own:
                full.add(measured, milliseconds * of_family.get(_family(measured), of_all))
        return full

    def case_ms(self, case: LayerCase) -> float:
        """Time of a case: measured; else scaled from the most similar one that was; else nominal."""
        if case in self.cases:
            return self.cases[case]
        if case not in self._estimates:
            alike = self._alike.get(_family(case), [])
            if alike:
                nearest = min(alike, key=lambda other: _distance(case, other))
                self._estimates[case] = self.cases[nearest] * _work(case) / _work(nearest)
            else:
                self._estimates[case] = self._nominal_ms(case)
        return self._estimates[case]

    def transition_ms(self, wanted: Transition) -> float:
        """Time of a transition: between those measured on the same mesh by interpolation, else nominal."""
        if wanted in self.transitions:
            return self.transitions[wanted]
        if wanted not in self._estimates:
            self._estimates[wanted] = self._estimate_transition(wanted)
        return self._estimates[wanted]

    def _estimate_transition(self, wanted: Transition) -> float:
        points = sorted(
            (other.values, milliseconds)
            for other, milliseconds in self.transitions.items()
            if (other.operation, other.mesh, other.dtype) == (wanted.operation, wanted.mesh, wanted.dtype)
        )
        if len(points) < 2:
            _, bytes_per_second, start_ms = _NOMINAL[self.platform]
            model, data = (int(size) for size in wanted.mesh.split("x"))
            sharers = model * data if self.platform == "cpu" else 1
            return (
                start_ms * sharers + 1e3 * wanted.values * jnp.dtype(wanted.dtype).itemsize * sharers / bytes_per_second
            )
        place = min(max(bisect.bisect_left(points, (wanted.values, 0.0)), 1), len(points) - 1)
        (low, low_ms), (high, high_ms) = points[place - 1], points[place]
        if wanted.values <= low:
            return low_ms
        return max(low_ms, low_ms + (high_ms - low_ms) * (wanted.values - low) / (high - low))

    def _nominal_ms(self, case: LayerCase) -> float:
        flops_per_second, bytes_per_second, start_ms = _NOMINAL[self.platform]
        sharers = case.devices if self.platform == "cpu" else 1
        moved = (math.prod(case.in_shape) + math.prod(case.out_shape)) * jnp.dtype(case.dtype).itemsize
        return sharers * (start_ms + 1e3 * case.flops / flops_per_second + 1e3 * moved / bytes_per_second)


def _family(measured: LayerCase | Transition) -> tuple:
    if isinstance(measured, Transition):
        return measured.operation, measured.dtype
    return measured.kind, measured.lowering, measured.kernel, measured.stride, measured.dtype


def _pixels(case: LayerCase) -> int:
    samples, rows, columns, _ = case.out_shape
    return max(1, samples * rows * columns)


def _work(case: LayerCase) -> float:
    """In proportion to the time of similar cases: virtual devices share the cores."""
    return case.devices * max(1, case.flops or math.prod(case.in_shape))


def _distance(case: LayerCase, other: LayerCase) -> float:
    def apart(one: int, two: int) -> float:
        return abs(math.log2(one / two))

    return (
        apart(_pixels(case), _pixels(other))
        + 2 * apart(case.in_channels, other.in_channels)
        + 2 * apart(case.out_channels, other.out_channels)
        + apart(case.columns, other.columns)
        + 0.5 * apart(case.devices, other.devices)
        + (case.residual != other.residual)
    )
