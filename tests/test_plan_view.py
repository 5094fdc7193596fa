import numpy as np
import pytest
from PIL import Image

from cambrian.commands.plan.view import draw_plan, print_plan
from cambrian.sharding import LayerCost, total_ms

PLAN = {
    "conv1": {"partition": "rows", "lowering": "winograd_2x2", "micro_batch": 4, "precision": "int8"},
    "fc": {"partition": "whole", "lowering": "matmul", "micro_batch": 0, "precision": "float32"},
}
COSTS = [LayerCost("conv1", 7.5, 0.25, 3 * 2**20, 2**19), LayerCost("fc", 2.25, 0.0, 2**18, 0)]


def test_the_table_has_a_line_for_each_layer_and_the_predicted_total_beside_the_measured_one(capsys):
    print_plan(PLAN, COSTS, "a network", 8.0)
    title, header, conv1, fc, total = capsys.readouterr().out.splitlines()
    assert title == "a network" and header.split()[:4] == ["layer", "partition", "precision", "lowering"]
    assert conv1.split() == ["conv1", "rows", "int8", "winograd_2x2", "4", "7.50", "0.25", "3.00", "0.50"]
    assert fc.split() == ["fc", "whole", "float32", "matmul", "all", "2.25", "0.25"]
    assert total == "a launch: predicted 10 ms, measured 8 ms (predicted / measured 1.25)"
    assert total_ms(COSTS) == 10.0
    print_plan(PLAN, [LayerCost("fc", 0.0213, 0.0, 0, 0)], "a network", 0.0426)
    assert "predicted 0.021 ms, measured 0.043 ms (predicted / measured 0.50)" in capsys.readouterr().out
    print_plan(PLAN, [COSTS[0], LayerCost("fc", 0.0, 0.0, 2**18, 0)], "a network", 15.5)
    *_, fc, total = capsys.readouterr().out.splitlines()
    assert fc.split() == ["fc", "whole", "float32", "matmul", "all", "0.25"]
    assert total.endswith("measured 16 ms; the prediction lacks 1 of 2 layers, which weren't measured")


@pytest.mark.slow
def test_the_picture_has_a_colour_for_each_lowering_and_a_hatch_for_each_partition(tmp_path):
    png, svg = draw_plan(PLAN, COSTS, "a network", 8.0, tmp_path / "plan")
    colours = {tuple(colour) for colour in np.asarray(Image.open(png).convert("RGB")).reshape(-1, 3)}
    assert {(0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0x00)} <= colours and (0x00, 0x9E, 0x73) not in colours
    text = svg.read_text()
    for name in ("conv1", "fc", "winograd_2x2", "matmul", "partition rows", "partition whole", "change of layout"):
        assert f"<!-- {name} -->" in text
    assert "partition samples" not in text
    _, svg = draw_plan(PLAN, COSTS, r"$\a network$", 8.0, tmp_path / "dollars")
    assert r"<!-- $\a network$ -->" in svg.read_text()
    alike = {name: {**layer, "partition": "whole"} for name, layer in PLAN.items()}
    _, svg = draw_plan(alike, [COSTS[0], LayerCost("fc", 0.0, 0.0, 0, 0)], "a network", 8.0, tmp_path / "alike")
    text = svg.read_text()
    assert "<!-- partition whole -->" not in text and "layer, all with partition whole" in text
    assert "8 ms a launch; the prediction lacks 1 of 2 layers" in text
