"""The network as an ONNX graph, for runtimes that read ONNX."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

from cambrian.sharding import Kind, LayerSpec, Network

INPUT = "images"


def onnx_model(network: Network, params: Mapping[str, np.ndarray], batch: int) -> ModelProto:
    """Returns the graph from normalised `images` (batch, C, H, W) float32 to logits (batch, num_classes) float32."""
    nodes = [node for layer in network for node in _nodes(layer)]
    weights = [
        numpy_helper.from_array(np.ascontiguousarray(param.transpose(3, 2, 0, 1)) if param.ndim == 4 else param, name)
        for name, param in params.items()
    ]
    rows, columns, channels = network[0].in_shape
    logits = network[-1]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, (batch, channels, rows, columns))],
        [helper.make_tensor_value_info(logits.name, TensorProto.FLOAT, (batch, logits.out_shape[2]))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _nodes(layer: LayerSpec) -> list[NodeProto]:
    """The nodes of a layer; the output of the last one is named after the layer."""
    source, weights = layer.input or INPUT, [f"{layer.name}.kernel", f"{layer.name}.bias"]
    window: dict[str, Any] = {
        "kernel_shape": [layer.kernel] * 2,
        "strides": [layer.stride] * 2,
        "pads": [layer.padding[0]] * 2 + [layer.padding[1]] * 2,
    }
    steps: list[tuple[str, list[str], dict[str, Any]]]
    match layer.kind:
        case Kind.CONV:
            steps = [("Conv", [source, *weights], window)]
        case Kind.MAX_POOL:
            steps = [("MaxPool", [source], window)]
        case Kind.MEAN_POOL:
            steps = [("GlobalAveragePool", [source], {}), ("Flatten", [], {})]
        case Kind.DENSE:
            steps = [("Gemm", [source, *weights], {})]
    if layer.residual is not None:
        steps.append(("Add", [layer.residual], {}))
    if layer.activation:
        steps.append(("Relu", [], {}))
    nodes, made = [], []
    for number, (operation, inputs, attributes) in enumerate(steps, start=1):
        output = layer.name if number == len(steps) else f"{layer.name}.{number}"
        nodes.append(helper.make_node(operation, [*made, *inputs], [output], **attributes))
        made = [output]
    return nodes
