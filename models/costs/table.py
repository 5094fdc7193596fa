"""Cost tables: measured times of cases and transitions, and estimates of those that weren't measured."""

import bisect
import collections
import dataclasses
import itertools
import math
import statistics

import jax.numpy as jnp

from cambrian.models.costs.layer_case import LayerCase

# Used where nothing comparable was measured: operations and bytes per second of one device alone on the machine, and
# milliseconds to start a layer or a collective. Nominal figures of two CPU cores and of a data-centre GPU or TPU.
_NOMINAL = {"cpu": (1e11, 1e10, 0.02), "gpu": (1e14, 1e12, 0.005), "tpu": (1e14, 1e12, 0.005)}


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """A change of layout, or a collective inside a layer, over the model axis of a mesh.

    Attributes:
      operation: layouts `SOURCE>TARGET`, `halo`, `sum`, or `loop` for writing out and reading again in other chunks.
      mesh: mesh, as MODELxDATA.
      values: number of values of the whole tensor of a group, or that each device exchanges or sums.
      dtype: dtype of the values.
    """

    operation: str
    mesh: str
    values: int
    dtype: str


@dataclasses.dataclass(slots=True)
class CostTable:
    """Measured times in milliseconds.

    Attributes:
      platform: cpu, gpu or tpu.
      machine: human-readable description of the machine: device, versions.
      cases: measured times of cases.
      transitions: measured times of transitions.
    """

    platform: str
    machine: dict[str, str]
    cases: dict[LayerCase, float] = dataclasses.field(default_factory=dict)
    transitions: dict[Transition, float] = dataclasses.field(default_factory=dict)
    _alike: dict[tuple, list[LayerCase]] = dataclasses.field(default_factory=dict)
    _estimates: dict[LayerCase | Transition, float] = dataclasses.field(default_factory=dict)

    def add(self, measured: LayerCase | Transition, milliseconds: float) -> None:
        """Adds a measurement."""
        self._estimates.clear()
        if isinstance(measured, Transition):
            self.transitions[measured] = milliseconds
        else:
            self.cases[measured] = milliseconds
            self._alike.setdefault(_family(measured), []).append(measured)

    def filled_up(self, base: "CostTable") -> "CostTable":
        """Returns this table, extended by what only `base` has.

        Times from `base` are scaled by the median ratio of the two tables over what both have measured of the same
        family, or of all families where the tables share none.
        """
        own: dict[LayerCase | Transition, float] = {**self.cases, **self.transitions}
        others: dict[LayerCase | Transition, float] = {**base.cases, **base.transitions}
        ratios = collections.defaultdict(list)
        for measured, milliseconds in others.items():
            if measured in own:
                ratios[_family(measured)].append(own[measured] / milliseconds)
        family_ratios = {family: statistics.median(found) for family, found in ratios.items()}
        overall_ratio = statistics.median(itertools.chain.from_iterable(ratios.values())) if ratios else 1.0
        full = CostTable(self.platform, self.machine)
        for measured, milliseconds in own.items():
            full.add(measured, milliseconds)
        for measured, milliseconds in others.items():
            if measured not in own:
                full.add(measured, milliseconds * family_ratios.get(_family(measured), overall_ratio))
        return full

    def case_ms(self, case: LayerCase) -> float:
        """Returns the milliseconds of a case: measured, else scaled from the most similar one, else nominal."""
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
        """Returns the milliseconds of a transition: measured or interpolated on the same mesh, else nominal."""
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
    """A measure proportional to the time of similar cases; virtual devices share the cores."""
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
