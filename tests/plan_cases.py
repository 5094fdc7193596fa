"""Plans that tests share."""

import random

from cambrian.models.costs.layer_case import lowerings_of
from cambrian.sharding import LayerPlan, MeshShape, Network, Partition, Plan, local_samples, refusal


def random_plan(net: Network, mesh: MeshShape, batch_size: int, seed: int) -> Plan:
    """A plan of any legal partitions, lowerings and micro-batches."""
    rng = random.Random(seed)
    layers = []
    for layer in net:
        partitions = [p for p in Partition if refusal(layer, p, mesh, batch_size) is None]
        partition, lowering = rng.choice(partitions), rng.choice(lowerings_of(layer, "cpu", "float32"))
        samples = local_samples(partition, mesh, batch_size)
        # Mostly as the layer before, so that loops hold several layers.
        micro_batch = layers[-1][1].micro_batch if layers and rng.random() < 0.7 else rng.choice((0, 1, 2))
        layers.append(
            (layer.name, LayerPlan(partition, lowering, micro_batch if samples % (micro_batch or 1) == 0 else 0))
        )
    return Plan(tuple(layers))
