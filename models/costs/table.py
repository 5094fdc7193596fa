"""Cost tables: measured times of cases and transitions, and estimates of those that weren't measured."""

import bisect
import collections
import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.machine import Machine
from cambrian.models.lowerings.lowering import kernel_dtype
from cambrian.sharding import Kind

# Used where nothing comparable was measured: operations and bytes per second of one device alone on the machine, and
# milliseconds to start a layer or a collective. Nominal figures of two CPU cores and of a data-centre GPU or TPU.
_INT8_SPEEDUP = 4.0  # over float32 of the same lowering: as many 8-bit integers as a vector holds more of
_NOMINAL = {"cpu": (1e11, 1e10, 0.02), "gpu": (1e14, 1e12, 0.005), "tpu": (1e14, 1e12, 0.005)}
# How many times smaller or larger than its estimate a time may be: by the same lowering on this machine, on another
# machine with the same instruction sets, and on one with others.
_UNCERTAINTY, _UNCERTAINTY_UNTRIED, _UNCERTAINTY_FOREIGN = 1.25, 1.5, 3.0
# Other processes slowed a measurement if the reference took this many times longer meanwhile than at its fastest.
_SLOWED = 1.25
# From this number on, the time of a layer is proportional to its samples: a larger batch is as alike as this one.
_MANY_SAMPLES = 64


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


Measurable = LayerCase | Transition


@dataclasses.dataclass(slots=True)
class CostTable:
    """Times in milliseconds.

    A time that was measured while other processes slowed the machine counts as an estimate, divided by how much slower
    it was, once a faster reference shows that.

    Attributes:
      platform: cpu, gpu or tpu.
      machine: where the times were measured; None for nowhere in particular.
      tuned: precisions in which `--tune` measured it.
      is_foreign: whether times were filled up from a machine with other instruction sets, where other lowerings win.
      times: times of cases and transitions, as they were measured.
      references_ms: the reference's time during each measurement (see `measure.measure_cases`), where it is known.
    """

    platform: str
    machine: Machine | None = None
    tuned: frozenset[str] = frozenset()
    is_foreign: bool = False
    times: dict[Measurable, float] = dataclasses.field(default_factory=dict)
    references_ms: dict[Measurable, float] = dataclasses.field(default_factory=dict)
    _measured: set[Measurable] = dataclasses.field(default_factory=set)
    _measured_families: set[tuple] = dataclasses.field(default_factory=set)
    _alike: dict[tuple, list[Any]] = dataclasses.field(default_factory=dict)
    _estimates: dict[Measurable, float] = dataclasses.field(default_factory=dict)
    _fastest_reference_ms: float = math.inf

    def add(self, measured: Measurable, milliseconds: float, reference_ms: float | None = None) -> None:
        """Adds a measurement, and the reference's time meanwhile."""
        self._add(measured, milliseconds)
        self.references_ms.pop(measured, None)
        if reference_ms:
            self.references_ms[measured] = reference_ms
            self._fastest_reference_ms = min(self._fastest_reference_ms, reference_ms)
        self._measured.add(measured)
        self._measured_families.add(_family(measured))

    def _add(self, timed: Measurable, milliseconds: float) -> None:
        self._estimates.clear()
        if timed not in self.times:
            self._alike.setdefault(_family(timed), []).append(timed)
        self.times[timed] = milliseconds

    def has_measured(self, precision: str) -> bool:
        """Whether convolutions in this precision were measured on this table's machine.

        Other layers don't count: those of a network in int8 are in float32.
        """
        layers = [timed for timed in self._measured if isinstance(timed, LayerCase) and timed.kind == Kind.CONV]
        return any(kernel_dtype(layer.dtype) == precision for layer in layers)

    def is_complete(self, precisions: Sequence[str]) -> bool:
        """Whether `--tune` measured this table's machine in each of these precisions."""
        return self.tuned.issuperset(precisions)

    def is_measured(self, timed: Measurable) -> bool:
        """Whether the time was measured on this table's machine, not slowed, rather than filled up or estimated."""
        return timed in self._measured and self.slowdown(timed) == 1.0

    def slowdown(self, timed: Measurable) -> float:
        """Returns how many times slower the machine was during a measurement than at its fastest; 1 if hardly."""
        slowdown = self.references_ms.get(timed, 0.0) / self._fastest_reference_ms
        return slowdown if slowdown > _SLOWED else 1.0

    def uncertainty(self, timed: Measurable) -> float:
        """Returns the factor by which a measurement on this table's machine may be smaller or larger than the time."""
        if self.is_measured(timed):
            return 1.0
        if self.is_alike_measured(timed):
            return _UNCERTAINTY
        return _UNCERTAINTY_FOREIGN if self.is_foreign else _UNCERTAINTY_UNTRIED

    def is_alike_measured(self, timed: Measurable) -> bool:
        """Whether anything alike was measured on this table's machine.

        That is a case of the same kind, lowering, kernel, stride and dtype, with channel groups or without, or a
        transition of the same operation, mesh and dtype.
        """
        return _family(timed) in self._measured_families

    def knows(self, case: LayerCase) -> bool:
        """Whether anything alike was measured, here or on another machine."""
        return _family(case) in self._alike

    def filled_up(self, base: "CostTable") -> "CostTable":
        """Returns this table, extended by what only `base` has.

        Times from `base` are scaled by the median ratio of this table's measurements to what `base` measured or
        estimates of them: of those that are most alike.
        """
        ratios = collections.defaultdict(list)
        for timed in self.times:
            if _family(timed) in base._alike:
                for group in _groups(timed):
                    ratios[group].append(self.milliseconds(timed) / base.milliseconds(timed))
        medians = {group: statistics.median(found) for group, found in ratios.items()}
        full = CostTable(self.platform, self.machine, self.tuned, self.is_foreign)
        if self.machine is not None and base.machine is not None:
            full.is_foreign |= self.machine.instruction_sets != base.machine.instruction_sets
        for timed in self.times:
            full._add(timed, self.milliseconds(timed))
        for timed in base.times:
            if timed not in self.times:
                ratio = next((medians[group] for group in _groups(timed) if group in medians), 1.0)
                full._add(timed, base.milliseconds(timed) * ratio)
        full._measured |= set(filter(self.is_measured, self._measured))
        full._measured_families |= self._measured_families
        if self.machine is not None and self.machine == base.machine:
            full.tuned |= base.tuned
            full._measured |= base._measured
            full._measured_families |= base._measured_families
        return full

    def milliseconds(self, timed: Measurable) -> float:
        """Returns the milliseconds of a case or a transition, measured or estimated."""
        if timed in self.times:
            return self.times[timed] / self.slowdown(timed)
        if timed not in self._estimates:
            is_transition = isinstance(timed, Transition)
            self._estimates[timed] = self._estimate_transition(timed) if is_transition else self._estimate_case(timed)
        return self._estimates[timed]

    def _estimate_case(self, case: LayerCase) -> float:
        """Scaled from the most similar case, else nominal."""
        # With channel groups it is taken to be as efficient as without.
        alike = self._alike.get(_family(case)) or self._alike.get(_family(dataclasses.replace(case, groups=1)))
        if alike:
            nearest = min(alike, key=lambda other: _distance(case, other))
            return self.milliseconds(nearest) * _work(case) / _work(nearest)
        if kernel_dtype(case.dtype) == "int8":
            return self.milliseconds(dataclasses.replace(case, dtype="float32")) / _INT8_SPEEDUP
        return self._nominal_ms(case)

    def _estimate_transition(self, wanted: Transition) -> float:
        """From the same mesh, else nominal."""
        points = sorted((other.values, self.milliseconds(other)) for other in self._alike.get(_family(wanted), ()))
        if not points:
            return self._nominal_transition_ms(wanted)
        if len(points) == 1:
            ((values, milliseconds),) = points
            nominal_ms = self._nominal_transition_ms(dataclasses.replace(wanted, values=values))
            return milliseconds * self._nominal_transition_ms(wanted) / nominal_ms
        place = min(max(bisect.bisect_left(points, (wanted.values, 0.0)), 1), len(points) - 1)
        (low, low_ms), (high, high_ms) = points[place - 1], points[place]
        if wanted.values <= low:
            return low_ms
        return max(low_ms, low_ms + (high_ms - low_ms) * (wanted.values - low) / (high - low))

    def _nominal_transition_ms(self, transition: Transition) -> float:
        _, bytes_per_second, start_ms = _NOMINAL[self.platform]
        model, data = (int(size) for size in transition.mesh.split("x"))
        sharers = model * data if self.platform == "cpu" else 1
        return sharers * (start_ms + 1e3 * transition.values * jnp.dtype(transition.dtype).itemsize / bytes_per_second)

    def _nominal_ms(self, case: LayerCase) -> float:
        flops_per_second, bytes_per_second, start_ms = _NOMINAL[self.platform]
        sharers = case.devices if self.platform == "cpu" else 1
        moved = (math.prod(case.in_shape) + math.prod(case.out_shape)) * jnp.dtype(case.dtype).itemsize
        return sharers * (start_ms + 1e3 * case.flops / flops_per_second + 1e3 * moved / bytes_per_second)


def _family(measured: Measurable) -> tuple:
    if isinstance(measured, Transition):
        return measured.operation, measured.mesh, measured.dtype
    return measured.kind, measured.lowering, measured.kernel, measured.stride, measured.dtype, measured.groups > 1


def _groups(measured: Measurable) -> list[tuple]:
    """Groups that a measurement belongs to, from those most alike to all."""
    if isinstance(measured, Transition):
        return [_family(measured), (measured.operation, measured.dtype), ()]
    return [_family(measured), (measured.lowering, measured.dtype), (measured.dtype,), ()]


@functools.cache
def _pixels(case: LayerCase) -> int:
    samples, rows, columns, _ = case.out_shape
    return max(1, min(samples, _MANY_SAMPLES) * rows * columns)


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
        + (case.activation != other.activation)
    )
