"""Cost tables: what is measured, what is estimated from it, and the file that keeps it."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest

from cambrian.models.costs import machine, measure
from cambrian.models.costs.files import current_cost_table, in_force, line_of, own_table, read_table, recording
from cambrian.models.costs.layer_case import LayerCase, case_of, lowerings_of
from cambrian.models.costs.layer_options import TableCosts
from cambrian.models.costs.machine import SHIPPED, Machine, own_table_path, this_machine
from cambrian.models.costs.measure import measure_transition
from cambrian.models.costs.table import CostTable, Transition
from cambrian.models.costs.tune import tune
from cambrian.models.execution.layered_network import LayeredNetwork
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.execution.place_params import place_params
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.network import network
from cambrian.sharding import LayerPlan, Layout, MeshShape, Network, Partition, Plan, make_mesh
from planner_cases import conv

EPYC = read_table(SHIPPED / "amd_epyc.jsonl", "cpu")
MACHINE = EPYC.machine or this_machine("cpu")
CASE = LayerCase("conv", "im2col", 3, 1, 8, 8, ((1, 1), (1, 1)), 16, 32, False, 4, "float32", 1)
NETWORK = network(Architecture("cifar", (1, 1), True, 10, width=64), 32)
TINY = network(Architecture("cifar", blocks=(1,), bottleneck=False, num_classes=4, width=4), 8)


def cases_of(table: CostTable) -> list[LayerCase]:
    return [timed for timed in table.times if isinstance(timed, LayerCase)]


def test_a_case_is_the_layer_as_a_device_computes_it():
    layer = network(Architecture("imagenet", (1,), False, 10, width=8), 32)[0]
    mesh, same = MeshShape(4, 2), ((3, 3), (3, 3))
    shapes = {
        Partition.WHOLE: ((5, 32, 32, 3), (5, 16, 16, 8), same),
        Partition.SAMPLES: ((5, 32, 32, 3), (5, 16, 16, 8), same),
        Partition.ROWS: ((5, 13, 32, 3), (5, 4, 16, 8), ((0, 0), (3, 3))),  # 8 rows, 3 from above and 2 from below
        Partition.CHANNELS: ((5, 32, 32, 3), (5, 16, 16, 2), same),
    }
    for partition, (in_shape, out_shape, padding) in shapes.items():
        case = case_of(layer, partition, "native", 5, "float32", mesh)
        assert (case.in_shape, case.out_shape, case.padding, case.devices) == (in_shape, out_shape, padding, 8)
        assert case.flops == 2 * math.prod(out_shape) * 7 * 7 * 3


def test_a_measured_case_is_what_was_measured_and_a_similar_one_is_scaled():
    table = CostTable("cpu")
    table.add(CASE, 3.0)
    assert table.milliseconds(CASE) == 3.0
    assert table.milliseconds(dataclasses.replace(CASE, samples=8)) == pytest.approx(6.0)
    assert table.milliseconds(dataclasses.replace(CASE, devices=32)) == pytest.approx(96.0)  # on the same cores
    nearer = dataclasses.replace(CASE, samples=16)
    table.add(nearer, 10.0)
    assert table.milliseconds(dataclasses.replace(CASE, samples=32)) == pytest.approx(20.0)
    other = dataclasses.replace(CASE, lowering="native")
    assert table.milliseconds(other) == CostTable("cpu").milliseconds(other)  # nothing comparable: nominal


def test_channel_groups_are_estimated_from_layers_without_until_some_are_measured():
    table = CostTable("cpu")
    dense = dataclasses.replace(CASE, lowering="onednn", in_channels=32)
    table.add(dense, 8.0)
    table.add(dataclasses.replace(dense, lowering="native"), 80.0)
    depthwise = dataclasses.replace(dense, groups=32)
    assert table.milliseconds(depthwise) == pytest.approx(8.0 / 32)
    assert table.milliseconds(dataclasses.replace(depthwise, lowering="native")) == pytest.approx(80.0 / 32)
    assert not table.knows(depthwise) and not table.is_alike_measured(depthwise)
    table.add(depthwise, 3.0)
    assert table.milliseconds(dataclasses.replace(depthwise, samples=8)) == pytest.approx(6.0)


def test_a_large_batch_is_estimated_from_the_same_layer_with_64_samples():
    table = CostTable("cpu")
    table.add(dataclasses.replace(CASE, samples=64), 3.0)
    table.add(dataclasses.replace(CASE, rows=16, columns=16, samples=64), 70.0)  # as many pixels as 256 samples
    assert table.milliseconds(dataclasses.replace(CASE, samples=256)) == pytest.approx(12.0)


def test_transitions_are_interpolated_on_their_mesh():
    table = CostTable("cpu")
    for values, milliseconds in ((1000, 1.0), (3000, 2.0)):
        table.add(Transition("halo", "4x2", values, "float32"), milliseconds)

    def halo(values: int, mesh: str = "4x2") -> float:
        return table.milliseconds(Transition("halo", mesh, values, "float32"))

    assert [halo(values) for values in (500, 1000, 2000, 3000, 5000)] == [1.0, 1.0, 1.5, 2.0, 3.0]
    assert halo(1000, "8x1") not in (0.0, 1.0)  # nominal


def test_a_single_transition_says_how_long_larger_ones_on_its_mesh_take():
    own = own_of(MACHINE)
    own.add(Transition("halo", "3x2", 2**20, "float32"), 500.0)
    table = in_force(own)

    def halo(values: int, mesh: str) -> Transition:
        return Transition("halo", mesh, values, "float32")

    assert table.milliseconds(halo(2**20 + 4, "3x2")) == pytest.approx(500, rel=1e-3)
    assert table.milliseconds(halo(2**22, "3x2")) == pytest.approx(2000, rel=0.2)
    assert 0 < table.milliseconds(halo(1, "3x2")) < 500
    assert table.uncertainty(halo(2**22, "3x2")) < table.uncertainty(halo(2**22, "5x2"))  # which is nominal


def test_a_table_s_file_round_trips_and_survives_a_cut_last_line(tmp_path):
    path = tmp_path / "costs.jsonl"
    transition = Transition("rows>samples", "4x8", 4096, "bfloat16")
    lines = [
        json.dumps({"machine": dataclasses.asdict(MACHINE)}),
        line_of(CASE, 1.25),
        line_of(transition, 2),
    ]
    path.write_text("\n".join(lines) + "\n" + line_of(CASE, 7.0)[:-9])
    table = read_table(path, "cpu")
    assert (table.times, table.machine) == ({CASE: 1.25, transition: 2.0}, MACHINE)
    assert read_table(path, "gpu").times == {}  # another platform's


def test_what_another_process_appends_when_a_table_is_opened_stays(tmp_path, monkeypatch):
    path, other = tmp_path / "costs.jsonl", dataclasses.replace(CASE, samples=7)
    path.write_text(line_of(CASE, 1.25) + "\n" + line_of(CASE, 7.0)[:-9])
    read_bytes = Path.read_bytes

    def read_then_append(self: Path) -> bytes:
        content = read_bytes(self)
        with path.open("a") as file:
            file.write("\n" + line_of(other, 3.0) + "\n")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_append)
    with recording(CostTable("cpu"), path) as keep:
        keep(dataclasses.replace(CASE, samples=8), 4.0, 1.0)
    times = read_table(path, "cpu").times
    assert [times.get(dataclasses.replace(CASE, samples=samples)) for samples in (4, 7, 8)] == [1.25, 3.0, 4.0]


def test_a_table_s_file_begins_with_its_machine(tmp_path):
    path = tmp_path / "costs.jsonl"
    for content in ("", '{"mach'):  # cut off
        path.write_text(content)
        with recording(CostTable("cpu"), path) as keep:
            keep(CASE, 1.0, 1.0)
        table = read_table(path, "cpu")
        assert (table.machine, table.times) == (this_machine("cpu"), {CASE: 1.0})


DAMAGES = {
    "zeros": b"\0" * 64,
    "not UTF-8": b"\xff\xfe",
    "joined": line_of(CASE, 7.0).encode()[:20] + line_of(CASE, 8.0).encode(),
    "no measurement": b"[1]",
    "nested": b"[" * 100_000,
    "no time": line_of(CASE, 0.0).encode(),
    "endless time": line_of(CASE, math.inf).encode(),
    "endless reference": line_of(CASE, 7.0, math.inf).encode(),
    "no devices": line_of(dataclasses.replace(CASE, devices=0), 7.0).encode(),
    "text for a number": line_of(CASE, 7.0).replace("16", '"16"').encode(),
    "half a padding": line_of(CASE, 7.0).replace("[[1, 1], [1, 1]]", "[[1, 1]]").encode(),
    "no values": line_of(Transition("halo", "4x2", 0, "float32"), 7.0).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_line_of_a_table_s_file_is_left_out(tmp_path, damage):
    path = tmp_path / "costs.jsonl"
    path.write_bytes(b"\n".join([damage, line_of(CASE, 1.25).encode(), damage, b'{"tuned": "int8"}', damage]))
    table = read_table(path, "cpu")
    assert (table.times, table.tuned) == ({CASE: 1.25}, {"int8"})


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.jsonl")), ids=lambda path: path.stem)
def test_no_line_of_a_shipped_table_is_damaged(path):
    table = read_table(path, "cpu")
    assert len(path.read_text().splitlines()) == 1 + len(table.times) + len(table.tuned) and table.machine is not None


def test_a_cache_folder_that_cannot_be_searched_holds_no_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))
    assert own_table("cpu").times == {} and machine.tuned_part("cpu") == ""


def test_a_table_is_complete_in_the_precisions_that_were_tuned():
    table = CostTable("cpu")
    for case in (
        dataclasses.replace(CASE, lowering="onednn", dtype="uint8"),
        dataclasses.replace(CASE, kind="mean_pool", lowering="native"),  # of a network in int8
    ):
        table.add(case, 1.0)
    assert [table.has_measured(precision) for precision in ("int8", "float32")] == [True, False]
    table.tuned = frozenset({"int8"})
    table.add(CASE, 1.0)  # by a build's calibration
    assert table.is_complete(["int8"]) and not table.is_complete(["float32"])
    assert not table.is_complete(["float32", "int8"])


def test_the_own_table_comes_before_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(current_cost_table("cpu").times) > 100
    own = own_table_path("cpu")
    own.parent.mkdir(parents=True)
    own.write_text(json.dumps({"machine": dataclasses.asdict(this_machine("cpu"))}) + "\n" + line_of(CASE, 1e6) + "\n")
    table = current_cost_table("cpu")
    assert table.milliseconds(CASE) == 1e6 and len(table.times) > 100


def test_a_table_belongs_to_a_number_of_threads_and_a_version_of_jaxlib(monkeypatch):
    monkeypatch.setattr(machine, "host_cores", lambda: 4)

    def path(threads: str) -> Path:
        monkeypatch.setenv("PJRT_NPROC", threads)
        return own_table_path("cpu")

    whole = path("4")
    assert path("3") != whole == path("5")  # of four cores
    monkeypatch.setattr(jaxlib, "__version__", "0")
    assert path("4") != whole


def plan_of(table: CostTable, layers: Network) -> Plan:
    return make_plan(layers, MeshShape(1, 1), 8, "cpu", "bfloat16", table=table)


def own_of(machine: Machine) -> CostTable:
    return CostTable("cpu", machine)


WITHOUT_BFLOAT16 = dataclasses.replace(MACHINE, instruction_sets=("avx2", "avx512_vnni", "avx512f"))
WITH_AMX = dataclasses.replace(MACHINE, instruction_sets=("amx_bf16", "amx_int8", *MACHINE.instruction_sets))


@pytest.mark.parametrize(
    ("machine", "is_its_own"),
    [
        (MACHINE, True),
        (dataclasses.replace(MACHINE, cores=8), False),
        (dataclasses.replace(MACHINE, caches_kib=(48, 1024, 32768)), False),
        (dataclasses.replace(MACHINE, jax="0.12.0"), False),
        (WITH_AMX, False),
    ],
)
def test_a_shipped_table_is_that_of_the_machine_it_was_measured_on_alone(machine, is_its_own):
    table = in_force(own_of(machine))
    case = next(iter(EPYC.times))
    assert (table.is_measured(case), table.milliseconds(case)) == (is_its_own, EPYC.times[case])
    assert table.tuned == ({"float32", "bfloat16", "int8"} if is_its_own else set())


@pytest.mark.parametrize("machine", [WITHOUT_BFLOAT16, WITH_AMX])
def test_a_table_measured_with_other_instruction_sets_chooses_no_lowering(machine):
    own, layers, onednn = own_of(machine), NETWORK, LOWERINGS["onednn"].obstacle("cpu") is None
    lowerings = {layer.lowering for _, layer in plan_of(in_force(own), layers).layers}
    assert lowerings <= ({"onednn", "native"} if onednn else {"native", "matmul"})  # native: of the pools
    case = case_of(layers[2], Partition.WHOLE, "im2col", 8, "bfloat16", MeshShape(1, 1))
    own.add(case, 1e-3)  # measured here
    assert plan_of(in_force(own), layers)[layers[2].name].lowering == "im2col"


def test_a_table_with_the_same_instruction_sets_chooses_lowerings():
    assert plan_of(in_force(own_of(dataclasses.replace(MACHINE, cores=4))), NETWORK) == plan_of(EPYC, NETWORK)


def test_estimates_are_uncertain_until_something_alike_is_measured():
    case = next(case for case in cases_of(EPYC) if case.kernel == 3 and case.dtype == "bfloat16")
    own, foreign = own_of(dataclasses.replace(MACHINE, cores=4)), own_of(WITH_AMX)
    assert 1 < in_force(own).uncertainty(case) < in_force(foreign).uncertainty(case)
    foreign.add(dataclasses.replace(case, samples=5), 1.0)
    assert 1 < in_force(foreign).uncertainty(case) < in_force(own).uncertainty(case)
    foreign.add(case, 1.0)
    assert in_force(foreign).uncertainty(case) == 1


def test_a_table_is_filled_up_by_another_machine_s_in_proportion():
    own, other = own_of(MACHINE), own_of(dataclasses.replace(MACHINE, cores=4))
    for samples, milliseconds in ((1, 1.0), (2, 2.0), (4, 4.0)):
        other.add(dataclasses.replace(CASE, samples=samples), milliseconds)
    own.add(dataclasses.replace(CASE, samples=1), 3.0)
    own.add(dataclasses.replace(CASE, samples=2), 10.0)
    other.add(dataclasses.replace(CASE, dtype="bfloat16"), 1.0)
    for values, milliseconds in ((1000, 1.0), (2000, 2.0)):
        other.add(Transition("halo", "4x2", values, "float32"), milliseconds)
    own.add(Transition("halo", "4x2", 1000, "float32"), 0.5)
    full = own.filled_up(other)
    assert full.machine == MACHINE
    assert [full.times[dataclasses.replace(CASE, samples=samples)] for samples in (1, 2, 4)] == [3.0, 10.0, 16.0]
    assert full.times[Transition("halo", "4x2", 2000, "float32")] == 1.0
    assert full.times[dataclasses.replace(CASE, dtype="bfloat16")] == 3.0  # nothing alike: the median of all
    assert CostTable("cpu").filled_up(other).times == other.times
    assert len(other.times) == 6 and len(own.times) == 3


def test_costs_measured_in_one_precision_leave_the_plan_in_the_other_as_it_was():
    own = CostTable("cpu")
    for case in cases_of(EPYC):
        if case.dtype == "float32" and case.samples == 1:
            own.add(case, 2 * EPYC.times[case])
    assert plan_of(EPYC, NETWORK) == plan_of(own.filled_up(EPYC), NETWORK)


@pytest.fixture
def briefly(monkeypatch):
    """Measures one launch of one layer a round, on a machine that nothing else slows."""
    monkeypatch.setattr(measure, "_reference_ms", lambda device: 1.0)
    monkeypatch.setattr(measure, "_MOST_LAYERS", 1)
    monkeypatch.setattr(measure, "_SECONDS", 0.0)


@pytest.mark.slow
def test_tuning_measures_what_is_lacking_and_no_more(tmp_path, briefly):
    path, mesh, parts = tmp_path / "costs" / "own.jsonl", make_mesh(MeshShape(1, 1), jax.devices()), []

    def progress(groups: list):
        parts.append(len(groups))
        return iter(groups)

    table = CostTable("cpu")
    tune(table, path, TINY[:1], mesh, 2, "float32", progress=progress)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["machine"]["jax"] == jax.__version__
    assert len(lines) == 2 + len(table.times) and parts[0] > 0
    assert json.loads(lines[-1]) == {"tuned": "float32"} and table.tuned == read_table(path, "cpu").tuned == {"float32"}
    assert all(milliseconds > 0 for milliseconds in table.times.values())
    lowerings = {case.lowering for case in cases_of(table) if case.rows == 8 and case.out_channels == 4}
    assert lowerings == set(lowerings_of(TINY[0], "cpu", "float32"))
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:10])  # cut short
    tune(read_table(path, "cpu"), path, TINY[:1], mesh, 2, "float32")
    assert read_table(path, "cpu").times.keys() == table.times.keys()
    before = path.read_text()
    tune(read_table(path, "cpu"), path, TINY[:1], mesh, 2, "float32")
    assert path.read_text() == before
    tune(read_table(path, "cpu"), path, TINY[-1:], mesh, 2, "float32")
    assert path.read_text().startswith(before) and path.read_text().endswith(lines[-1] + "\n")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_is_a_matrix_product_or_onednn_s(tmp_path, briefly, dtype):
    table = CostTable("cpu")
    tune(table, tmp_path / "own.jsonl", TINY[-1:], make_mesh(MeshShape(1, 1), jax.devices()), 2, dtype)
    usable = ["matmul"] + ["onednn"] * (LOWERINGS["onednn"].obstacle("cpu") is None)
    assert sorted({case.lowering for case in cases_of(table)}) == usable == lowerings_of(TINY[-1], "cpu", dtype)
    assert lowerings_of(TINY[-1], "gpu", dtype) == ["matmul"]


def slow_but_for(table: CostTable, fast: str, milliseconds: float) -> None:
    """Every lowering of TINY takes 100 ms on one device, `fast` less."""
    for layer in TINY:
        for lowering in lowerings_of(layer, "cpu", "float32"):
            case = case_of(layer, Partition.WHOLE, lowering, 4, "float32", MeshShape(1, 1))
            table.add(case, milliseconds if lowering == fast else 100.0)


@pytest.mark.parametrize("milliseconds, chosen", [(99.0, False), (1.0, True)])
def test_what_cannot_be_serialized_must_be_worth_compiling_at_each_start(milliseconds, chosen):
    table = CostTable("cpu")
    slow_but_for(table, "onednn", milliseconds)
    plan = make_plan(TINY, MeshShape(1, 1), 4, "cpu", table=table)
    assert any(layer.lowering == "onednn" for _, layer in plan.layers) == chosen


def test_predicted_costs_add_up_to_the_measured_cases():
    table = CostTable("cpu")
    slow_but_for(table, "winograd_2x2", 40.0)
    plan = make_plan(TINY, MeshShape(1, 1), 4, "cpu", table=table)
    three_by_three = sum(layer.kernel == 3 for layer in TINY)
    assert sum(cost.compute_ms for cost in plan.costs) == pytest.approx(
        40 * three_by_three + 100 * (len(TINY) - three_by_three)
    )
    assert all(plan[layer.name].lowering == "winograd_2x2" for layer in TINY if layer.kernel == 3)


def test_weights_count_as_large_as_their_transform_makes_them():
    costs = TableCosts(CostTable("cpu"), MeshShape(2, 1), 4, "float32")
    bytes_of = {option.lowering: option.weight_bytes for option in costs.layer(TINY[1], Partition.CHANNELS)}
    assert bytes_of["im2col"] == 4 * (9 * 4 * 2 + 2)
    assert bytes_of["winograd_4x4"] == 4 * (36 * 4 * 2 + 2)
    assert costs.transition_ms((8, 8, 4), Layout.ROWS, Layout.ROWS) == 0.0


@pytest.mark.parametrize("quantized", ["", "uint8", "int8"])
@pytest.mark.parametrize("lowering", ["onednn", "onednn_winograd_4x4"])
@pytest.mark.parametrize("in_channels", [48, 64])  # in int8 a kernel of 48 isn't packed
def test_weights_count_as_large_as_onednn_pads_them(lowering, quantized, in_channels):
    layer = conv("a", None, in_channels, 32, rows=4)
    layer = dataclasses.replace(layer, quantized=quantized)
    if lowering not in lowerings_of(layer, "cpu", quantized or "float32"):
        pytest.skip("not computed here")
    mesh, precision = MeshShape(2, 1), "int8" if quantized else "float32"
    costs = TableCosts(CostTable("cpu"), mesh, 2, precision)
    (option,) = (each for each in costs.layer(layer, Partition.CHANNELS) if each.lowering == lowering)
    kernel = np.ones((3, 3, in_channels, 32), "int8" if quantized else "float32")
    plan = Plan((("a", LayerPlan(Partition.CHANNELS, lowering)),))
    weights = {"a.kernel": kernel, "a.bias": np.zeros(32, np.float32)}
    arrays, _ = place_params(LayeredNetwork((layer,), weights, lambda images: images), plan, mesh, 2, precision)
    assert option.weight_bytes == sum(array.nbytes for array in arrays) // 2


def test_a_plan_with_a_lowering_that_rounds_too_much_is_not_considered():
    for layer in TINY:
        assert not any("4x4" in name for name in lowerings_of(layer, "cpu", "bfloat16"))


@pytest.mark.parametrize("operation", ["loop", "halo", "sum", "whole>rows", "rows>samples", "channels>whole"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_kind_of_transition_can_be_measured(briefly, operation, dtype):
    mesh = make_mesh(MeshShape(2, 2), jax.devices())
    (milliseconds,), reference_ms = measure_transition(Transition(operation, "2x2", 2**12, dtype), mesh)
    assert milliseconds > 0 and reference_ms > 0
