"""Finds the fastest plan: the shortest path through the stages of a network, by dynamic programming.

A node is a state between two layers with the micro-batch of the layer before. The costs after a node depend on nothing
else, so only the shortest path to each node is kept.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from cambrian.sharding.errors import UsageError
from cambrian.sharding.layer import LayerSpec, Network
from cambrian.sharding.mesh import MeshShape
from cambrian.sharding.partition import Partition, local_samples
from cambrian.sharding.plan_semantics import loop_continues
from cambrian.sharding.planner.costs import Costs, Option, geometry
from cambrian.sharding.planner.stages import Stage, stages_of

Vector = list[float]  # a distance per micro-batch
Options = dict[Partition, list[list[Option]]]  # by micro-batch
Prices = dict[Partition, Vector]
Choices = list[tuple[Partition, Option]]  # of each layer


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """The last step of a path: the node before it, the choice for the layer, and its cost."""

    state: int
    micro_batch: int  # index into `Trellis.micro_batches`
    partition: Partition
    option: Option
    milliseconds: float  # of the step
    bound: float  # of the whole path including the step, with the price of weights


class Trellis:
    """All plans of `network` with the partitions `allowed` for each layer.

    Raises:
      UsageError: if `costs` has no option for a layer.
    """

    def __init__(
        self, network: Network, allowed: Sequence[tuple[Partition, ...]], mesh: MeshShape, batch_size: int, costs: Costs
    ):
        options_of = {}
        for layer, partitions in zip(network, allowed, strict=True):
            if (key := (geometry(layer), partitions)) not in options_of:
                options_of[key] = _legal_options(layer, partitions, mesh, batch_size, costs)
        every = [option for options in options_of.values() for found in options.values() for option in found]
        # 0 comes first, whether it is an option or not.
        self.micro_batches = [0, *sorted({option.micro_batch for option in every} - {0})]
        by_micro_batch: dict[object, Options] = {
            key: {
                partition: [[o for o in found if o.micro_batch == m] for m in self.micro_batches]
                for partition, found in options.items()
            }
            for key, options in options_of.items()
        }
        self.options = [by_micro_batch[geometry(layer), ps] for layer, ps in zip(network, allowed, strict=True)]
        self.stages = stages_of(network, allowed, costs)

    def distances(self, byte_price: float = 0.0, working_limit: float = math.inf) -> list[list[Vector]]:
        """Returns the shortest distance to each node before each layer and after the last, by state and micro-batch.

        Args:
          byte_price: milliseconds added for each byte of weights.
          working_limit: largest working memory of an option, in bytes.
        """
        prices_of: dict[int, Prices] = {}  # layers of equal geometry share their options
        table = [[[0.0] * len(self.micro_batches)]]
        for stage, options in zip(self.stages, self.options, strict=True):
            if id(options) not in prices_of:
                prices_of[id(options)] = _prices(options, byte_price, working_limit)
            table.append(_advance(stage, prices_of[id(options)], table[-1]))
        return table

    def steps_to(
        self, layer: int, state: int, micro_batch: int, table: list[list[Vector]], byte_price: float, limit: float
    ) -> Iterator[Step]:
        """Yields the last steps of all paths that end after `layer` in this state and micro-batch (an index)."""
        before, stage = table[layer], self.stages[layer]
        for arrow in stage.arrows[state]:
            rewrite_ms = stage.rewrite_ms[arrow.source]
            for option in self.options[layer].get(arrow.partition, [[]] * (micro_batch + 1))[micro_batch]:
                if option.working_bytes > limit:
                    continue
                step_ms = arrow.transition_ms + option.milliseconds
                for m, distance in enumerate(before[arrow.source]):
                    goes_on = loop_continues(m, micro_batch, arrow.samples_change)
                    ms = step_ms if goes_on else step_ms + rewrite_ms
                    bound = distance + ms + byte_price * option.weight_bytes
                    if bound < math.inf:
                        yield Step(arrow.source, m, arrow.partition, option, ms, bound)

    def shortest(self, byte_price: float = 0.0, working_limit: float = math.inf) -> tuple[float, Choices]:
        """Finds the fastest plan, with weights priced; ties are broken deterministically.

        Returns:
          The milliseconds of the plan, without the price of weights, and the choice for each layer.
        """
        table = self.distances(byte_price, working_limit)
        _, state, m = min((d, s, m) for s, vector in enumerate(table[-1]) for m, d in enumerate(vector))
        milliseconds, choices = 0.0, []
        for layer in reversed(range(len(self.stages))):
            # Ties go to the step that continues the loop.
            found = self.steps_to(layer, state, m, table, byte_price, working_limit)
            step = min(found, key=lambda step, m=m: (step.bound, step.micro_batch != m))
            milliseconds += step.milliseconds
            choices.append((step.partition, step.option))
            state, m = step.state, step.micro_batch
        return milliseconds, choices[::-1]


def _legal_options(
    layer: LayerSpec, partitions: tuple[Partition, ...], mesh: MeshShape, batch_size: int, costs: Costs
) -> dict[Partition, list[Option]]:
    legal = {}
    for partition in partitions:
        samples = local_samples(partition, mesh, batch_size)
        found = [o for o in costs.layer(layer, partition) if not o.micro_batch or samples % o.micro_batch == 0]
        if found:
            legal[partition] = found
    if not legal:
        raise UsageError(
            f"{layer.name}: expected the cost of an option whose micro_batch divides its samples for one of "
            f"{', '.join(partitions)}, got none"
        )
    return legal


def _prices(options: Options, byte_price: float, working_limit: float) -> Prices:
    return {
        partition: [
            min(
                (o.milliseconds + byte_price * o.weight_bytes for o in found if o.working_bytes <= working_limit),
                default=math.inf,
            )
            for found in by_micro_batch
        ]
        for partition, by_micro_batch in options.items()
    }


def _advance(stage: Stage, prices: Prices, vectors: list[Vector]) -> list[Vector]:
    going_on, broken = [], []
    for vector, rewrite_ms in zip(vectors, stage.rewrite_ms, strict=True):
        rewritten = min(vector) + rewrite_ms
        going_on.append([min(distance, rewritten) for distance in vector])
        broken.append([going_on[-1][0]] + [rewritten] * (len(vector) - 1))
    never = [math.inf] * len(vectors[0])
    after = []
    for arrows in stage.arrows:
        shortest = never
        for arrow in arrows:
            if (price := prices.get(arrow.partition)) is not None:
                before, ms = (broken if arrow.samples_change else going_on)[arrow.source], arrow.transition_ms
                ways = [distance + ms + more for distance, more in zip(before, price, strict=True)]
                shortest = ways if shortest is never else list(map(min, shortest, ways))
        after.append(shortest)
    return after
