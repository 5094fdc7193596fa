"""Small networks, random costs, and the time of a plan, computed a second time from the words of its contract."""

import dataclasses
import random

from cambrian.sharding import Kind, LayerSpec, Option, Partition, layouts, local_samples, refusal
from cambrian.sharding.planner.costs import geometry

BATCH_SIZE = 8


def conv(name, source, in_channels, channels, rows=8, kernel=3, stride=1, residual=None):
    in_shape, out_shape = (rows, rows, in_channels), (rows // stride, rows // stride, channels)
    return LayerSpec(
        name, Kind.CONV, source, in_shape, out_shape, kernel, stride, (kernel // 2, kernel // 2), 1, residual, "RELU"
    )


RESIDUAL = (conv("a", None, 3, 8), conv("b", "a", 8, 8), conv("c", "b", 8, 8, residual="a"))
DOWNSAMPLE = (
    conv("a", None, 3, 8),
    conv("b", "a", 8, 8, stride=2),
    conv("d", "a", 8, 8, kernel=1, stride=2),
    conv("c", "b", 8, 8, rows=4, residual="d"),
)
HEAD = (
    conv("a", None, 4, 8),
    LayerSpec("m", Kind.MAX_POOL, "a", (8, 8, 8), (4, 4, 8), 3, 2, (1, 1)),
    LayerSpec("p", Kind.MEAN_POOL, "m", (4, 4, 8), (1, 1, 8)),
    LayerSpec("f", Kind.DENSE, "p", (1, 1, 8), (1, 1, 10)),
)
NETWORKS = {"residual": RESIDUAL, "downsample": DOWNSAMPLE, "head": HEAD}


@dataclasses.dataclass(frozen=True)
class RandomCosts:
    """Costs drawn from a seed, the same for the same question."""

    seed: int
    num_options: int = 3
    movement_ms: float = 3.0

    def _random(self, *question) -> random.Random:
        return random.Random(repr((self.seed, *map(str, question))))

    def layer(self, layer, partition):
        drawn = self._random(geometry(layer), partition)
        # 3 never divides.
        every = [("im2col", 0), ("winograd", 0), ("im2col", 1), ("winograd", 2), ("im2col", 2), ("im2col", 3)]
        return [
            Option(lowering, micro_batch, drawn.uniform(1, 10), drawn.randrange(1000), drawn.randrange(500))
            for lowering, micro_batch in drawn.sample(every[:2], 1) + drawn.sample(every[2:], self.num_options - 1)
        ]

    def transition_ms(self, shape, source, target):
        assert source != target
        return self._random("move", shape, source, target).uniform(0, self.movement_ms)

    def rechunk_ms(self, shape, layout):
        return self._random("rechunk", shape, layout).uniform(0, self.movement_ms)


def options_of(layer, mesh, costs, batch_size=BATCH_SIZE):
    for partition in Partition if mesh.model > 1 else [Partition.WHOLE]:
        if refusal(layer, partition, mesh, batch_size) is None:
            samples = local_samples(partition, mesh, batch_size)
            for option in costs.layer(layer, partition):
                if option.micro_batch == 0 or samples % option.micro_batch == 0:
                    yield partition, option


def milliseconds_of(network, choices, costs):
    """As `apply_planned` reads tensors, and as chunks change: (partition, option) of each layer → milliseconds."""
    shapes = {None: network[0].in_shape, **{layer.name: layer.out_shape for layer in network}}
    reads = layouts(network[0], choices[0][0])[0]
    images = "whole" if reads == "channels" else reads
    values, made_in, total = {(None, images)}, {None: images}, 0.0
    for index, (layer, (partition, option)) in enumerate(zip(network, choices, strict=True)):
        if index:
            before, micro_batch = choices[index - 1], choices[index - 1][1].micro_batch
            by_samples = {before[0], partition}
            one_loop = micro_batch == option.micro_batch and (
                micro_batch == 0 or Partition.SAMPLES not in by_samples or len(by_samples) == 1
            )
            if not one_loop:
                needed = {name for later in network[index:] for name in (later.input, later.residual)}
                needed -= {None} if all(later.input is not None for later in network[index:]) else set()
                total += sum(costs.rechunk_ms(shapes[name], layout) for name, layout in values if name in needed)
        reads, makes = layouts(layer, partition)
        for name, layout in [(layer.input, reads)] + ([(layer.residual, makes)] if layer.residual else []):
            if (name, layout) not in values:
                source = "whole" if (name, "whole") in values else made_in[name]
                total += costs.transition_ms(shapes[name], source, layout)
                values.add((name, layout))
        values.add((layer.name, makes))
        made_in[layer.name] = makes
        total += option.milliseconds
    return total


def bytes_of(choices):
    return sum(option.weight_bytes for _, option in choices) + max(option.working_bytes for _, option in choices)


def choices_of(plan, network, costs):
    found = []
    for layer in network:
        planned = plan[layer.name]
        key = planned.lowering, planned.micro_batch
        options = [o for o in costs.layer(layer, planned.partition) if (o.lowering, o.micro_batch) == key]
        found.append((planned.partition, options[0]))
    return found


def cost_of(plan, network, costs):
    return milliseconds_of(network, choices_of(plan, network, costs), costs)
