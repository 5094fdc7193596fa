"""Which plans with oneDNN, compiled again at each start, are chosen."""

import dataclasses

import pytest

from cambrian.models.costs.layer_case import case_of, lowerings_of
from cambrian.models.costs.table import CostTable
from cambrian.models.execution.make_plan import make_plan
from cambrian.models.lowerings import LOWERINGS
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.resnet.network import network
from cambrian.sharding import MeshShape, Partition, Plan

TINY = network(Architecture("cifar", blocks=(1,), bottleneck=False, num_classes=4, width=4), 8)
MESH, SAMPLES = MeshShape(1, 1), 4


@pytest.fixture(autouse=True)
def needs_onednn():
    if obstacle := LOWERINGS["onednn"].obstacle("cpu"):
        pytest.skip(f"onednn: {obstacle}")


def table_of(milliseconds: dict[str, float]) -> CostTable:
    """Lowerings take these times on each layer of TINY, others 100 ms."""
    table = CostTable("cpu")
    for layer in TINY:
        for lowering in lowerings_of(layer, "cpu", "float32"):
            case = case_of(layer, Partition.WHOLE, lowering, SAMPLES, "float32", MESH)
            table.add(case, milliseconds.get(lowering, 100.0))
    return table


def planned(table: CostTable) -> tuple[Plan, set[str]]:
    plan = make_plan(TINY, MESH, SAMPLES, "cpu", table=table)
    return plan, {layer.lowering for _, layer in plan.layers}


def test_what_takes_xla_many_seconds_is_not_compiled_at_each_start():
    _, lowerings = planned(table_of({"onednn": 10.0, "winograd_2x2": 9.0, "winograd_2x2_split": 8.0}))
    assert {"onednn", "winograd_2x2"} <= lowerings and "winograd_2x2_split" not in lowerings


def test_without_onednn_a_note_says_so(monkeypatch):
    table = table_of({"onednn": 1.0})
    for name, lowering in LOWERINGS.items():
        if lowering.custom_call:
            gone = dataclasses.replace(lowering, obstacle=lambda platform: "no such target")
            monkeypatch.setitem(LOWERINGS, name, gone)
    plan, lowerings = planned(table)
    assert plan.notes == ("planned without oneDNN: no such target",)
    assert not any("onednn" in lowering for lowering in lowerings)
