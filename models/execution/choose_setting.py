"""Chooses precision, batch size and plan by the costs of this machine; measures in a few seconds what decides them.

The fastest plan is a shortest path whose costs take long to measure, so they are measured lazily (Dellin and
Srinivasa, "A Unifying Formalism for Shortest Path Problems with Expensive Edge Evaluations via Lazy Best-First Search
over Paths with Edge Selectors", ICAPS 2016). A plan is chosen by optimistic estimates; what it contains and wasn't
measured on this machine is measured, together with its rivals; then the next plan is chosen. Once the fastest plan by
optimistic estimates consists of measurements, no other plan is faster, unless an estimate was further off than assumed.
What decides the most time is measured first, so that a budget that ends early costs least.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from cambrian.models.costs.files import in_force, own_table, recording
from cambrian.models.costs.layer_case import LayerCase, dtype_of, lowerings_of
from cambrian.models.costs.layer_options import Outlook, TableCosts, micro_batches
from cambrian.models.costs.machine import own_table_path
from cambrian.models.costs.measure import measure_cases, measure_transition
from cambrian.models.costs.table import CostTable, Measurable, Transition
from cambrian.models.execution.make_plan import is_left_out
from cambrian.models.execution.settings import Plans, Setting
from cambrian.sharding import LayerSpec, Layout, Partition, Plan, local_samples
from cambrian.sharding.host import low_cpu_latency
from cambrian.sharding.planner import plan_costs

_NEGLIGIBLE = 0.02  # of a plan's time: what is uncertain beyond it is left so
_MOST_RIVALS = 4
_NOT_MEASURED = "plan from the table of another machine: --calibrate_s 0"
_COMPILATION_S = 0.25  # of a case, roughly
_LAUNCHES = 4  # of a case, roughly


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """A setting and its plan by the costs of this machine, and how they came about.

    Attributes:
      plans: plans by all that is known.
      setting: the fastest precision and batch size.
      notes: what decided the plan, unless it is a complete table of this machine.
    """

    plans: Plans
    setting: Setting
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.plans.plan(self.setting)


def choose_setting(
    plans: Plans,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    mesh: Mesh,
    seconds: float,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Chosen:
    """Chooses precision, batch size and plan; measures first what decides them, unless this machine's table is there.

    Measurements are kept in the user's cache folder, from which later calls go on.

    Args:
      plans: plans of the network on `mesh` by the table in force.
      precisions: precisions to choose from, the expected one first.
      batch_sizes: batch sizes to choose from.
      mesh: devices to measure on.
      seconds: time for measuring, about; 0 for none.
      progress: called with the seconds that are over.

    Raises:
      UsageError, OutOfMemory: as `make_plan`.
    """
    is_complete = plans.table.is_complete(precisions)
    if is_complete or plans.table.platform != "cpu" or seconds == 0:
        setting = plans.fastest(precisions, batch_sizes)
        elsewhere = plans.table.platform == "cpu" and not is_complete and _Unmeasured.of(plans, setting).decides
        return Chosen(plans, setting, (_NOT_MEASURED,) if elsewhere else ())
    with contextlib.ExitStack() as stack:
        own = own_table(plans.table.platform)
        try:
            keep = stack.enter_context(recording(own, own_table_path(plans.table.platform)))
        except OSError:  # without a cache folder that can be written, the next build measures again
            keep = own.add
        stack.enter_context(low_cpu_latency(plans.table.platform))
        plans = _plausible(plans, precisions, batch_sizes)
        measuring = _Measuring(plans, own, keep, mesh, seconds, progress)
        setting = measuring.fastest(precisions, batch_sizes)
        return Chosen(measuring.plans, setting, (measuring.note(setting),))


def _plausible(plans: Plans, precisions: Sequence[str], batch_sizes: Sequence[int]) -> Plans:
    """Returns plans that cut samples alone, if they fit: other cuts only add communication between virtual devices."""
    if plans.partition != "auto" or any(size % plans.mesh.num_devices for size in batch_sizes):
        return plans
    by_samples = dataclasses.replace(plans, partition="samples").with_table(plans.table)
    settings = (Setting(precision, min(batch_sizes)) for precision in precisions)
    return by_samples if all(by_samples.ms_per_sample(setting) < math.inf for setting in settings) else plans


@dataclasses.dataclass(frozen=True, slots=True)
class _Unmeasured:
    """What the fastest plan of a setting, by optimistic estimates, contains that wasn't measured on this machine.

    Attributes:
      layers: case → a layer that it computes, and its partition.
      gains_ms: case or transition → how much less a launch may take than expected, once it is measured.
      total_ms: expected time of a launch.
    """

    layers: dict[Measurable, tuple[LayerSpec, Partition]]
    gains_ms: dict[Measurable, float]
    total_ms: float

    @classmethod
    def of(cls, plans: Plans, setting: Setting) -> "_Unmeasured":
        costs, plan = _costs(plans, setting), plans.plan(setting, Outlook.OPTIMISTIC)
        layers, times = {}, collections.Counter()
        for layer, (_, planned) in zip(plans.network, plan.layers, strict=True):
            for part, count in costs.parts(layer, planned.partition, planned.lowering, planned.micro_batch):
                layers.setdefault(part, (layer, planned.partition))
                times[part] += count
        moves = _Moves(costs)
        plan_costs(plan, plans.network, costs.mesh, moves, batch_size=costs.batch_size, element_bytes=1)
        times.update(moves.made)
        expected = {part: count * plans.table.milliseconds(part) for part, count in times.items()}
        gains = {part: ms * (1 - 1 / plans.table.uncertainty(part)) for part, ms in expected.items()}
        return cls(layers, {part: ms for part, ms in gains.items() if ms > 0}, sum(expected.values()))

    @property
    def decides(self) -> bool:
        """Whether measuring may change the time of the plan noticeably."""
        return sum(self.gains_ms.values()) > _NEGLIGIBLE * self.total_ms


class _Moves:
    """Costs that collect the transitions between layers that they are asked for."""

    def __init__(self, costs: TableCosts):
        self._costs = costs
        self.layer = costs.layer
        self.made = collections.Counter()

    def transition_ms(self, shape: tuple[int, int, int], source: Layout, target: Layout) -> float:
        if (moved := self._costs.transition(shape, source, target)) is not None:
            self.made[moved] += 1
        return 0.0

    def rechunk_ms(self, shape: tuple[int, int, int], layout: Layout) -> float:
        self.made[self._costs.rechunking(shape, layout)] += 1
        return 0.0


def _costs(plans: Plans, setting: Setting) -> TableCosts:
    return TableCosts(plans.table, *plans.planned(setting), setting.precision, outlook=Outlook.OPTIMISTIC)


class _Measuring:
    """Measures into this machine's own table until the time is over."""

    def __init__(
        self,
        plans: Plans,
        own: CostTable,
        keep: Callable[[Measurable, float, float], None],
        mesh: Mesh,
        seconds: float,
        progress: Callable[[float], None],
    ):
        self.plans = plans
        self._own, self._keep, self._mesh = own, keep, mesh
        self._start, self._seconds, self._progress = time.perf_counter(), seconds, progress
        self._num_measured = 0
        self._slowed: set[Measurable] = set()  # measured since other processes slowed the machine, which they still do

    def fastest(self, precisions: Sequence[str], batch_sizes: Sequence[int]) -> Setting:
        """Returns the fastest setting, after measuring what decides it in all precisions and at its batch size."""
        if not any(map(self._own.has_measured, precisions)):  # how fast this machine is, for the first batch size
            self._measure(Setting(precisions[0], min(batch_sizes)), share=0.0)
        # What may be short enough is measured: by the first estimates alone, it would depend on the moment.
        batch_size, refined = self.plans.largest(precisions, batch_sizes, Outlook.OPTIMISTIC).batch_size, []
        while batch_size not in refined and (self._left_s > 0 or not refined):
            self._refine([Setting(precision, batch_size) for precision in precisions])
            refined.append(batch_size)
            batch_size = self.plans.fastest(precisions, batch_sizes).batch_size
        if self._left_s <= 0:  # what was hardly measured is chosen only if it is faster at its worst
            settings = [Setting(precision, refined[-1]) for precision in precisions]
            best = min(settings, key=lambda setting: self.plans.ms_per_sample(setting, Outlook.PESSIMISTIC))
            precisions = [best.precision]
        are_short = [self.plans.is_short(Setting(name, size)) for name in precisions for size in refined]
        return self.plans.fastest(precisions, refined if any(are_short) else batch_sizes)

    def note(self, setting: Setting) -> str:
        if not self._num_measured:
            return "plan from what earlier builds measured on this machine"
        taken_s = time.perf_counter() - self._start
        note = f"plan measured on this machine in {taken_s:.0f} s ({self._num_measured} cases)"
        unmeasured = _Unmeasured.of(self.plans, setting)
        if self._left_s <= 0 and unmeasured.decides:
            slowdown = max(map(self._own.slowdown, unmeasured.gains_ms))
            how = "scaled from another machine's table"
            if slowdown > 1:
                how = f"while other processes slowed it {slowdown:.1f} times"
            note += f", in part {how}: a longer --calibrate_s or --tune measures more"
        return note

    @property
    def _left_s(self) -> float:
        return self._seconds - (time.perf_counter() - self._start)

    def _refine(self, settings: Sequence[Setting]) -> None:
        """Measures until the setting that may be the fastest is known, and each precision's most decisive parts."""
        for setting in settings:
            if not self._own.has_measured(setting.precision):
                self._measure(setting, share=0.25)
        while self._left_s > 0:
            fastest = min(settings, key=lambda setting: self.plans.ms_per_sample(setting, Outlook.OPTIMISTIC))
            if not self._measure(fastest, share=0.5):
                break

    def _measure(self, setting: Setting, share: float) -> bool:
        """Measures the most decisive parts of a setting's plan, with their rivals; returns False if none decides.

        Args:
          share: of what measuring may gain, beyond which the plan is made anew.
        """
        unmeasured = _Unmeasured.of(self.plans, setting)
        if not unmeasured.decides:
            return False
        if self._slowed.issuperset(unmeasured.gains_ms):
            self._slowed.clear()
        enough, done = share * sum(unmeasured.gains_ms.values()), 0.0
        for part, gain_ms in sorted(unmeasured.gains_ms.items(), key=lambda item: -item[1]):
            if self._left_s <= 0:
                break
            if part in self._slowed:
                continue
            if not self._own.is_measured(part):
                if isinstance(part, Transition):
                    self._record([part], *measure_transition(part, self._mesh, self.plans.launches_at_once))
                else:
                    cases = self._in_time(self._rivals(part, *unmeasured.layers[part], setting))
                    self._record(cases, *measure_cases(cases, self._mesh, self.plans.launches_at_once, brief=True))
            done += gain_ms
            if done >= enough:
                break
        self.plans = self.plans.with_table(in_force(self._own))
        return True

    def _record(self, parts: Sequence[Measurable], times: Sequence[float], reference_ms: float) -> None:
        for part, milliseconds in zip(parts, times, strict=True):
            with contextlib.suppress(OSError):  # a full disk keeps nothing, and the next build measures again
                self._keep(part, milliseconds, reference_ms)
            self._num_measured += 1
        is_slowed = not self._own.is_measured(parts[0])
        self._slowed = self._slowed.union(parts) if is_slowed else set()
        self._progress(time.perf_counter() - self._start)

    def _rivals(self, case: LayerCase, layer: LayerSpec, partition: Partition, setting: Setting) -> list[LayerCase]:
        """Returns `case`, and of each other lowering the unmeasured case that may be the fastest of all.

        The most promising come first.
        """
        costs, table = _costs(self.plans, setting), self.plans.table
        samples = local_samples(partition, costs.mesh, costs.batch_size)
        expected_ms, least_ms = [], {}
        for lowering in lowerings_of(layer, table.platform, dtype_of(layer, setting.precision)):
            if is_left_out(lowering, table):
                continue
            options = []
            for micro_batch in micro_batches(layer, partition, samples, costs.mesh):
                parts = costs.parts(layer, partition, lowering, micro_batch)
                expected_ms.append(sum(times * table.milliseconds(part) for part, times in parts))
                if not table.is_measured(parts[0][0]):
                    options.append((sum(times * costs.milliseconds(part) for part, times in parts), parts[0][0]))
            if options and lowering != case.lowering:
                least, rival = min(options, key=lambda option: option[0])
                least_ms[rival] = least
        rivals = [rival for rival in sorted(least_ms, key=least_ms.__getitem__) if least_ms[rival] <= min(expected_ms)]
        return [case, *rivals][:_MOST_RIVALS]

    def _in_time(self, cases: list[LayerCase]) -> list[LayerCase]:
        """Returns the first cases, as many as there is time for, at least one."""
        left_s, kept = self._left_s, []
        for case in cases:
            left_s -= _COMPILATION_S + _LAUNCHES * self.plans.table.milliseconds(case) / 1e3
            if kept and left_s < 0:
                break
            kept.append(case)
        return kept
