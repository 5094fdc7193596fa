"""Few measurements, taken from the table of a pretended machine, lead to about its fastest plan."""

import dataclasses
import re
import resource
import types
from collections import Counter

import jax
import pytest

from cambrian.commands.program.digests import build_digest
from cambrian.models.costs import files
from cambrian.models.costs.files import current_cost_table, mark_as_tuned, own_table, read_table, recording
from cambrian.models.costs.layer_case import LayerCase
from cambrian.models.costs.layer_options import TableCosts
from cambrian.models.costs.machine import SHIPPED, Machine, own_table_path, this_machine
from cambrian.models.costs.table import CostTable, Transition
from cambrian.models.execution import choose_setting as module, settings
from cambrian.models.execution.choose_setting import Chosen, choose_setting
from cambrian.models.execution.settings import Plans, Setting
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.network import network
from cambrian.sharding import MeshShape, OutOfMemory, make_mesh, total_ms
from cambrian.sharding.planner import plan_costs

EPYC, XEON = (read_table(SHIPPED / name, "cpu") for name in ("amd_epyc.jsonl", "intel_xeon.jsonl"))
XEON_MACHINE = XEON.machine or this_machine("cpu")
WITH_AMX = dataclasses.replace(XEON_MACHINE, instruction_sets=("amx_bf16", *XEON_MACHINE.instruction_sets))
ARCHITECTURE = Architecture("cifar", (1, 1, 2), True, 10, width=64)
NETWORK, QUANTIZED = (network(ARCHITECTURE, 32, precision) for precision in ("float32", "int8"))
PRECISIONS = ["bfloat16", "float32"]
CASE_S = 0.3  # that measuring a case takes


class PretendedMachine:
    """A machine whose layers take what a table says, scaled; each measurement takes time of a clock of its own."""

    def __init__(self, machine: Machine, times: CostTable, faster: dict[str, float]):
        self.machine, self.clock_s, self.measured = machine, 0.0, []
        self.slowed_from_s, self.slowed_until_s, self.slowdown = 0.0, 0.0, 2.0  # by another process
        self.table = CostTable("cpu", machine)
        for timed, milliseconds in times.times.items():
            is_faster = isinstance(timed, LayerCase) and faster.get(f"{timed.lowering}__{timed.dtype}")
            self.table.add(timed, milliseconds / (is_faster or 1.0))

    def measure_cases(self, cases, mesh, launches_at_once: int, *, brief: bool = False) -> tuple[list[float], float]:
        slowdown = self.slowdown if self.slowed_from_s <= self.clock_s < self.slowed_until_s else 1.0
        self.measured += cases
        self.clock_s += CASE_S * len(cases)
        return [slowdown * self.table.milliseconds(case) for case in cases], slowdown

    def measure_transition(self, transition: Transition, mesh, launches_at_once: int) -> tuple[list[float], float]:
        return self.measure_cases([transition], mesh, launches_at_once)


@pytest.fixture
def on_machine(tmp_path, monkeypatch):
    """Pretends to run on a machine; `nearest` alone is shipped."""

    def pretend(nearest: str, machine: Machine, times: CostTable, **faster: float) -> PretendedMachine:
        here = PretendedMachine(machine, times, faster)
        (tmp_path / "shipped").mkdir()
        (tmp_path / "shipped" / nearest).write_bytes((SHIPPED / nearest).read_bytes())
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(files, "SHIPPED", tmp_path / "shipped")
        monkeypatch.setattr(files, "this_machine", lambda platform: machine)
        monkeypatch.setattr(module, "measure_cases", here.measure_cases)
        monkeypatch.setattr(module, "measure_transition", here.measure_transition)
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: here.clock_s))
        return here

    return pretend


def choose_on(
    mesh: str = "1x1", seconds: float = 15.0, batch_sizes=(8, 32), precisions=PRECISIONS, network=NETWORK
) -> Chosen:
    shape = MeshShape.parse(mesh)
    plans = Plans(network, shape, current_cost_table("cpu"))
    return choose_setting(plans, precisions, batch_sizes, make_mesh(shape, jax.devices()), seconds)


def true_ms(here: PretendedMachine, chosen: Chosen) -> float:
    """The milliseconds for a sample that the pretended machine takes by a plan."""
    mesh, batch_size = chosen.plans.planned(chosen.setting)
    costs = TableCosts(here.table, mesh, batch_size, chosen.setting.precision)
    return total_ms(plan_costs(chosen.plan, NETWORK, mesh, costs, batch_size=batch_size, element_bytes=4)) / batch_size


def least_ms(here: PretendedMachine, chosen: Chosen) -> float:
    """The same by the plan from the machine's own complete table, with the same batch size."""
    plans = chosen.plans.with_table(here.table)
    return min(plans.ms_per_sample(Setting(name, chosen.setting.batch_size)) for name in PRECISIONS)


EPYC_S = {"nearest": "intel_xeon.jsonl", "machine": EPYC.machine, "times": EPYC}
WITH_AMX_S = {"nearest": "amd_epyc.jsonl", "machine": WITH_AMX, "times": EPYC, "onednn__bfloat16": 6.0}
FLOAT32_S = {"nearest": "amd_epyc.jsonl", "machine": WITH_AMX, "times": EPYC, "onednn__bfloat16": 0.2} | {
    f"{name}__bfloat16": 0.2 for name in LOWERINGS
}


@pytest.mark.parametrize(
    ("pretended", "precision", "mesh"),
    [
        (WITH_AMX_S, "bfloat16", "1x1"),
        pytest.param(EPYC_S, "bfloat16", "1x1", marks=pytest.mark.slow),
        pytest.param(FLOAT32_S, "float32", "4x8", marks=pytest.mark.slow),
    ],
)
def test_a_few_seconds_of_measuring_lead_to_about_the_fastest_plan(on_machine, pretended, precision, mesh):
    here = on_machine(**pretended)
    sizes = (8, 32) if mesh == "1x1" else (64, 256)
    chosen = choose_on(mesh, batch_sizes=sizes)
    assert chosen.setting.precision == precision
    assert true_ms(here, chosen) <= least_ms(here, chosen) / 0.95
    assert here.clock_s <= 15 + 4 * CASE_S
    (note,) = chosen.notes
    assert note.startswith(f"plan measured on this machine in {here.clock_s:.0f} s ({len(here.measured)} cases)")
    assert {case.dtype for case in here.measured} == {"bfloat16", "float32"}


def test_what_was_measured_is_kept_and_not_measured_again(on_machine):
    here = on_machine(**EPYC_S)
    first = choose_on(seconds=60)
    kept, measured = own_table("cpu"), list(here.measured)
    assert kept.times.keys() == set(measured) and len(set(measured)) == len(measured)
    again = choose_on(seconds=60)

    assert (again.setting, again.plan) == (first.setting, first.plan)
    assert again.notes == ("plan from what earlier builds measured on this machine",) and here.measured == measured


def test_with_no_time_the_nearest_table_decides_and_a_note_says_so(on_machine):
    here = on_machine(**WITH_AMX_S)
    chosen = choose_on(seconds=0)
    assert chosen.notes == ("plan from the table of another machine: --calibrate_s 0",)
    assert not here.measured and not own_table_path("cpu").exists()
    assert chosen.setting.precision == PRECISIONS[0]  # the expected one


def test_little_time_measures_what_weighs_most_and_scales_the_rest(on_machine):
    here = on_machine(**EPYC_S)
    chosen = choose_on(seconds=2.0, precisions=["bfloat16"], batch_sizes=(8,))
    assert "in part scaled from another machine's table" in chosen.notes[0]
    flops = [case.flops for case in here.measured if isinstance(case, LayerCase)]
    assert len(flops) <= 10 and flops[0] > sum(flops) / len(flops) / 2
    assert true_ms(here, chosen) <= 1.2 * least_ms(here, chosen)


@pytest.mark.parametrize("slowed_s", [(0.0, 8.0), (4.0, 12.0)])
def test_what_other_processes_slowed_is_measured_again(on_machine, slowed_s):
    here = on_machine(**EPYC_S)
    here.slowed_from_s, here.slowed_until_s = slowed_s
    chosen = choose_on(seconds=60)
    assert true_ms(here, chosen) <= least_ms(here, chosen) / 0.97
    own, again = own_table("cpu"), [part for part, times in Counter(here.measured).items() if times > 1]
    assert again and all(own.is_measured(part) for part in again)
    assert all(own.milliseconds(part) == pytest.approx(here.table.milliseconds(part), 1e-3, 1e-4) for part in own.times)


def test_a_note_says_how_much_other_processes_slowed_what_decided(on_machine):
    here = on_machine(**EPYC_S)
    here.slowed_from_s, here.slowed_until_s = 3.0, 100.0
    chosen = choose_on(seconds=12.0)
    assert chosen.notes[0].endswith(
        "in part while other processes slowed it 2.0 times: a longer --calibrate_s or --tune measures more"
    )
    assert true_ms(here, chosen) <= least_ms(here, chosen) / 0.95
    here.slowed_until_s = here.clock_s
    assert "slowed" not in choose_on(seconds=60).notes[0]


def test_nothing_is_measured_where_a_table_of_this_machine_is_there(on_machine):
    here = on_machine(**{**EPYC_S, "nearest": "amd_epyc.jsonl"})
    chosen = choose_on()
    assert not chosen.notes and not here.measured and not own_table_path("cpu").exists()


def test_int8_is_measured_where_the_table_of_this_machine_lacks_it(on_machine):
    here = on_machine(nearest="intel_xeon.jsonl", machine=XEON_MACHINE, times=XEON)
    choose_on(precisions=["int8"], network=QUANTIZED)
    first = [case for case in here.measured if isinstance(case, LayerCase)]
    assert {case.dtype for case in first} >= {"uint8"} and own_table("cpu").has_measured("int8")
    choose_on()
    assert len(here.measured) == len(first)


def tuned_in(here: PretendedMachine, precision: str, dtypes: set[str]) -> None:
    """Has the pretended machine tuned: the user's file says so and holds its times in `dtypes`."""
    own, path = CostTable("cpu"), own_table_path("cpu")
    with recording(own, path) as keep:
        for timed, milliseconds in here.table.times.items():
            if isinstance(timed, LayerCase) and timed.dtype in dtypes:
                keep(timed, milliseconds, 1.0)
    mark_as_tuned(own, path, precision)


def test_a_precision_that_was_not_tuned_is_measured(on_machine):
    here = on_machine(**WITH_AMX_S)
    tuned_in(here, "float32", {"float32"})
    digest = build_digest("cpu")
    assert choose_on(precisions=["float32"], batch_sizes=[8]).notes == () and not here.measured
    assert choose_on(batch_sizes=[8]).setting.precision == "bfloat16"  # the faster one
    assert (few := len(here.measured)) > 0 and {case.dtype for case in here.measured} == {"bfloat16"}
    other = network(dataclasses.replace(ARCHITECTURE, width=32), 32)
    choose_on(precisions=["bfloat16"], batch_sizes=[8], seconds=2.0, network=other)
    assert len(here.measured) > few  # another network isn't planned by what the first one's build measured
    assert build_digest("cpu") == digest  # so the artefacts stay


def test_tuning_in_int8_tunes_no_other_precision(on_machine):
    here = on_machine(**{**EPYC_S, "nearest": "intel_xeon.jsonl"})
    tuned_in(here, "int8", {"uint8", "int8"})
    choose_on()
    assert {case.dtype for case in here.measured} == {"bfloat16", "float32"}


def test_without_a_folder_for_them_measurements_serve_once(on_machine, tmp_path):
    here = on_machine(**EPYC_S)
    (tmp_path / "cambrian").write_text("no folder")
    chosen = choose_on(seconds=2.0)
    assert here.measured and chosen.notes


def test_on_a_full_disk_measurements_serve_once(on_machine):
    here = on_machine(**EPYC_S)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, limits[1]))
    try:
        chosen = choose_on(seconds=2.0, batch_sizes=[8])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(here.measured) > len(own_table("cpu").times) > 0
    assert chosen.notes[0].startswith("plan measured on this machine")


def test_the_batch_size_is_the_smallest_that_is_about_as_fast_as_any(monkeypatch):
    times = {8: 1.2, 16: 1.02, 32: 1.0, 64: 1.01}
    plans = Plans(NETWORK, MeshShape(1, 1), CostTable("cpu"))
    monkeypatch.setattr(Plans, "ms_per_sample", lambda self, setting, *_: times[setting.batch_size])
    assert plans.fastest(["float32"], list(times)) == Setting("float32", 16)
    times[64] = float("inf")  # doesn't fit the memory
    assert plans.fastest(["float32"], list(times)) == Setting("float32", 16)


@pytest.mark.parametrize(("limit", "batch_size"), [(1.4, 32), (0.5, 1)])
def test_whether_the_largest_batch_takes_too_long_is_measured(on_machine, monkeypatch, limit, batch_size):
    here = on_machine(**EPYC_S)
    other = CostTable("cpu", XEON_MACHINE)  # by which what is measured first makes all estimates too high
    for timed, milliseconds in XEON.times.items():
        is_native = isinstance(timed, LayerCase) and timed.lowering == "native"
        other.add(timed, milliseconds / 3 if is_native else milliseconds)
    monkeypatch.setattr(files, "_shipped", lambda path, platform: other)
    largest = Setting("float32", 32)
    true_ms = Plans(NETWORK, MeshShape(1, 1), here.table).ms_per_sample(largest) * largest.batch_size
    monkeypatch.setattr(settings, "_LONGEST_MS", limit * true_ms)
    chosen = choose_on(seconds=5, precisions=["float32"], batch_sizes=(1, 32))  # for one batch size
    assert chosen.setting.batch_size == batch_size


@pytest.mark.parametrize(("launches_at_once", "batch_size"), [(1, 32), (4, 8)])
def test_launches_side_by_side_take_a_few_seconds_together(monkeypatch, launches_at_once, batch_size):
    plans = Plans(NETWORK, MeshShape(1, 1), CostTable("cpu"), launches_at_once=launches_at_once)
    monkeypatch.setattr(Plans, "ms_per_sample", lambda *_: 180.0)
    assert plans.largest(["bfloat16"], [8, 16, 32, 64]) == Setting("bfloat16", batch_size)


def test_a_device_holds_the_working_memory_of_all_launches_side_by_side():
    def plans(launches_at_once: int, limit_bytes: int) -> Plans:
        return Plans(NETWORK, MeshShape(1, 1), EPYC, "auto", launches_at_once, limit_bytes)

    def least_bytes(launches_at_once: int) -> int:
        with pytest.raises(OutOfMemory) as refused:
            plans(launches_at_once, 1).plan(setting)
        return int(re.findall(r"\d+", str(refused.value))[0])

    setting = Setting("bfloat16", 8)
    one, two, three = map(least_bytes, (1, 2, 3))
    assert one < two < 2 * one and three - two <= two - one
    assert plans(2, two).ms_per_sample(setting) < plans(2, two - 1).ms_per_sample(setting) == float("inf")
