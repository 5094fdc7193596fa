"""The memory that a configuration is predicted to take, by plans given here."""

import pytest

from cambrian.commands import predict as module
from cambrian.commands.config_file import read_config_file
from cambrian.commands.configuration import Configuration
from cambrian.commands.predict import predict
from cambrian.models.execution import settings
from cambrian.sharding import LayerCost, LayerPlan, MeshShape, Partition, Plan
from command import TINY_CONFIG

WEIGHT_BYTES = 22 * 1000  # of 22 layers


@pytest.mark.parametrize(
    ("mesh", "precision", "partition", "working_bytes"),
    [
        # The largest layer reads and writes 64 channels of 8×8: 8192 values a sample.
        ("1x1", "float32", Partition.WHOLE, 8 * 8192 * 4),
        ("1x1", "bfloat16", Partition.WHOLE, 8 * 8192 * 2),  # of each launch that computes at once
        ("2x2", "float32", Partition.WHOLE, 4 * 8192 * 4),
        ("2x2", "float32", Partition.SAMPLES, 2 * 8192 * 4),
        ("2x2", "float32", Partition.ROWS, 4 * 8192 // 2 * 4),
    ],
)
def test_a_device_holds_its_weights_and_the_activations_of_the_largest_layer(
    tmp_path, monkeypatch, mesh, precision, partition, working_bytes
):
    def planned(network, *_, **__):
        layers = tuple((layer.name, LayerPlan(partition, "native")) for layer in network)
        return Plan(layers, costs=tuple(LayerCost(name, 2.0, 0.5, 1000, 0) for name, _ in layers))

    monkeypatch.setattr(settings, "make_plan", planned)
    monkeypatch.setattr(module, "_plan_costs", module._plan_costs.__wrapped__)
    (tmp_path / "tiny.py").write_text(TINY_CONFIG)
    model = read_config_file(str(tmp_path / "tiny.py")).preset.model
    prediction = predict(
        Configuration(model=model, mesh=MeshShape.parse(mesh), precision=precision, batch_size=8, threads=2)
    )
    assert prediction is not None
    assert prediction.bytes_per_device == WEIGHT_BYTES + prediction.launches_at_once * working_bytes
    assert prediction.ms_per_image == 22 * 2.5 / (8 * prediction.launches_at_once)
