"""What became of each heavy operation of a graph: the plan that `--mode plan` shows."""

from cambrian.models.graph.choose_lowerings import MeasuredCosts
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Constant, Graph, Node
from cambrian.models.graph.scan import nodes_and_repetitions
from cambrian.sharding import LayerCost, LayerPlan, Partition, Plan

_HEAVY = ("conv_general_dilated", "dot_general", "while", "scan", "cond", "sort", "fft", "gather", "scatter")


def plan_of_graph(graph: Graph, partition: Partition, costs: MeasuredCosts, chunks: int) -> Plan:
    """Names each fused convolution and each other heavy operation, in order, of a graph that computes one chunk.

    Costs are the measured times; what wasn't measured has 0. Operations that are left to XLA have the lowering `xla`,
    and a note says why.
    """
    layers, layer_costs, reasons = [], [], {}
    micro_batch = graph.inputs[0].shape[0] if chunks > 1 else 0
    heavy = [(node, chunks * times) for node, times in nodes_and_repetitions(graph) if _is_heavy(node)]
    for number, (node, repetitions) in enumerate(heavy):
        precision = str(node.outputs[0].dtype)
        loops = repetitions // chunks
        name = f"{number:03d} {_title(node)}" + (f", {loops} times" if loops > 1 else "")
        operation = node.operation
        milliseconds, held = 0.0, sum(value.array.nbytes for value in node.inputs if isinstance(value, Constant))
        if isinstance(operation, FusedConvolution):
            precision = "int8" if operation.is_integer else operation.dtype
            lowering, milliseconds = operation.lowering, repetitions * (costs.get(operation) or 0.0)
        else:
            lowering = "xla"
            reasons.setdefault(_reason(node), []).append(name)
        layers.append((name, LayerPlan(partition, lowering, micro_batch, precision)))
        layer_costs.append(LayerCost(name, milliseconds, 0.0, held, 0))
    notes = tuple(f"left to XLA, {reason}: {', '.join(names)}" for reason, names in reasons.items())
    return Plan(tuple(layers), notes, tuple(layer_costs))


def _is_heavy(node: Node) -> bool:
    return isinstance(node.operation, FusedConvolution) or node.name in _HEAVY


def _title(node: Node) -> str:
    operation = node.operation
    if not isinstance(operation, FusedConvolution):
        return node.name
    (rows, columns), groups = operation.window.size, operation.groups
    kind = f"{rows}×{columns}" if (rows, columns) != (1, 1) else "dense"
    if groups > 1:
        kind += " depthwise" if groups == operation.in_shape[3] else f" in {groups} groups"
    parts = [f"{kind} {operation.in_shape[3]}→{operation.out_channels}"]
    if operation.residual:
        parts.append("residual")
    if operation.activation:
        parts.append(operation.activation.lower())
    return " + ".join(parts)


def _reason(node: Node) -> str:
    if node.name == "dot_general":
        dynamic = not any(isinstance(value, Constant) for value in node.inputs)
        return "products of two activations" if dynamic else "products of another dtype or with a batch of kernels"
    if node.name != "conv_general_dilated":
        return "control flow or data movement"
    if not isinstance(node.inputs[1], Constant):
        return "convolutions whose kernel isn't a parameter"
    if str(node.output.dtype) not in ("float32", "bfloat16"):
        return f"convolutions in {node.output.dtype}"
    return "convolutions with negative padding, a batch group, groups along three axes, or stride on dilated images"
