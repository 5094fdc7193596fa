"""Pass: zeros that are padded before a convolution become its own padding, which copies nothing."""

import dataclasses

from cambrian.models.graph.constants import uniform_value
from cambrian.models.graph.fused_convolution import FusedConvolution
from cambrian.models.graph.graph import Graph, Node, Uses, rewritten, without_dead_nodes


def fold_padding(graph: Graph) -> Graph:
    """Folds padding of rows and columns with zeros."""
    makers = Uses(graph).makers

    def rewrite(node: Node) -> list[Node] | None:
        operation = node.operation
        padding = makers.get(node.inputs[0]) if isinstance(operation, FusedConvolution) else None
        if padding is None or padding.name != "pad":
            return None
        assert isinstance(operation, FusedConvolution)
        images, zero = padding.inputs
        samples, rows, columns, channels = padding.params["padding_config"]
        only_pixels = samples == channels == (0, 0, 0) and rows[2] == columns[2] == 0
        if uniform_value(zero) != 0 or not only_pixels or min(*rows, *columns) < 0:
            return None
        window = operation.window
        folded = tuple(
            (int(before + more[0]), int(after + more[1]))  # Keras pads by NumPy's integers, which JSON doesn't take
            for (before, after), more in zip(window.padding, (rows, columns), strict=True)
        )
        fused = dataclasses.replace(
            operation, in_shape=images.shape, window=dataclasses.replace(window, padding=folded)
        )
        return [Node(fused, (images, *node.inputs[1:]), node.outputs)]

    return without_dead_nodes(rewritten(graph, rewrite))
