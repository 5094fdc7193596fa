"""How many samples of a launch a device computes at a time, so that activations stay in the caches."""

from cambrian.models.graph.constants import compact
from cambrian.models.graph.graph import Constant, Graph, Value
from cambrian.models.graph.scan import nodes_and_repetitions
from cambrian.sharding.host import cache_share_bytes


def micro_batch(graph: Graph) -> int:
    """Returns the largest number of samples whose activations fit a core's share of the last-level cache.

    Args:
      graph: graph whose inputs are (N, …).

    Returns:
      A divisor of N; N where nothing is to be gained: everything fits, reading the weights again for each chunk moves
      more than the activations, or XLA:CPU would compute convolutions in a loop, which it does on one core.
    """
    samples, share = graph.inputs[0].shape[0], cache_share_bytes()
    nodes = nodes_and_repetitions(graph)
    if not nodes or share is None or any(node.name == "conv_general_dilated" for node, _ in nodes):
        return samples
    of_sample = max(_bytes(*node.inputs, *node.outputs) for node, _ in nodes) / samples
    fitting = (size for size in range(samples, 0, -1) if samples % size == 0 and size * of_sample <= share)
    chosen = next(fitting, 1)
    moved = sum(_bytes(*node.outputs) * times for node, times in nodes)
    weights = sum(compact(constant.array).nbytes for constant in graph.constants())
    return chosen if weights * (samples // chosen) < moved else samples


def _bytes(*values: Value) -> int:
    return sum(value.size * value.dtype.itemsize for value in values if not isinstance(value, Constant))
