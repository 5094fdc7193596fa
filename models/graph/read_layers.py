"""A graph as a sequence of layers, which the model axis can cut by rows and channels.

The layers are those of `cambrian.sharding.LayerSpec`: convolutions and dense layers with bias, residual and activation,
max pooling, and the mean over all pixels. ResNet, VGG and MobileNet consist of nothing else, besides the normalisation
of images.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cambrian.models.execution.layered_network import Integers, LayeredNetwork
from cambrian.models.graph.constants import compact, uniform_value
from cambrian.models.graph.find_poolings import Pool, max_pool_of
from cambrian.models.graph.fused_convolution import FusedConvolution, layer_name, weights
from cambrian.models.graph.graph import Constant, Graph, Node, Uses, Value, is_elementwise
from cambrian.models.graph.passes import optimized
from cambrian.models.graph.quantize import Dequantize, Quantize
from cambrian.models.graph.trace import trace
from cambrian.models.graph.views import Reshape, view_of
from cambrian.models.lowerings import Scale, Window
from cambrian.sharding import Kind, LayerSpec


class NotLayered(Exception):
    """A graph computes more than layers; the message says what."""


def layered_network(
    function: Callable[[Any, jax.Array], jax.Array], params: Any, inputs: jax.ShapeDtypeStruct
) -> LayeredNetwork:
    """Traces `function(params, inputs)` and describes it by layers, as `read_layers` does."""
    graph, _ = trace(function, params, inputs)
    return read_layers(optimized(graph))


def read_layers(graph: Graph) -> LayeredNetwork:
    """Describes a graph of one input (N, H, W, C), as `optimized` returns it, by layers.

    A layer with weights has the name of its kernel in the parameters.

    Raises:
      NotLayered: if a node isn't part of a layer.
    """
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        raise NotLayered("inputs other than images (N, H, W, C)")
    reader = _Reader(graph)
    for node in graph.nodes:
        reader.read(node)
    if not reader.layers or [reader.tensors.get(value) for value in graph.outputs] != [reader.layers[-1].name]:
        raise NotLayered("results other than the output of the last layer")
    if reader.flat.intersection(graph.outputs) and len(graph.outputs[0].shape) == 4:
        raise NotLayered("results (N, 1, 1, C)")
    prepare = functools.partial(_prepare, tuple(reader.before))
    return LayeredNetwork(tuple(reader.layers), reader.params, prepare, reader.integers, reader.stored)


def _prepare(before: tuple[Node, ...], inputs: jax.Array) -> jax.Array:
    images = inputs
    for node in before:
        operands = [
            jnp.broadcast_to(compact(value.array), inputs.shape) if isinstance(value, Constant) else images
            for value in node.inputs
        ]
        (images,) = node.operation(*operands)
    return images


class _Reader:
    """Collects the layers, node by node."""

    def __init__(self, graph: Graph):
        self.uses, self.shape = Uses(graph), graph.inputs[0].shape
        self.layers: list[LayerSpec] = []
        self.params: dict[str, np.ndarray] = {}
        self.before: list[Node] = []
        self.integers: dict[str, Integers] = {}
        self.stored: dict[str | None, Scale] = {}
        self.quantized: dict[Value, Scale] = {}  # outputs of `Quantize`
        self.tensors: dict[Value, str | None] = {graph.inputs[0]: None}  # value → the layer that makes it
        self.flat: set[Value] = set()  # outputs of dense layers and means
        self.flattened: dict[Value, Value] = {}  # all pixels of square images in one row → the images (N, H, H, C)
        self.padded: dict[Value, Node] = {}  # value → the padding that makes it, which a max pooling takes over
        self.absorbed: set[Node] = set()  # part of the layer that a node before them makes

    def read(self, node: Node) -> None:
        if node in self.absorbed:
            return
        if not self.layers and is_elementwise(node) and all(map(self.is_before, node.inputs)):
            if node.output.shape != self.shape:
                raise NotLayered("operations before the first layer that widen the images")
            self.before.append(node)
            self.tensors = {node.output: None}
        elif isinstance(node.operation, FusedConvolution):
            self.read_convolution(node, node.operation)
        elif isinstance(node.operation, (Quantize, Dequantize)):
            self.read_conversion(node, node.operation)
        elif node.name == "pad" and self.pads_max_pool(node):
            self.padded[node.output] = node
        elif (pool := max_pool_of(node)) is not None:
            self.read_max_pool(node, pool)
        elif node.name == "reduce_sum":
            self.read_mean(node)
        elif self.keeps_flat(node):
            self.tensors[node.output] = self.tensors[node.inputs[0]]
            self.flat.add(node.output)
        elif self.flattens(node):
            self.flattened[node.output] = self.flattened.get(node.inputs[0], node.inputs[0])
        else:
            raise NotLayered(f"the operation {node.name}")

    def keeps_flat(self, node: Node) -> bool:
        """Whether a node makes (N, C) or (N, 1, 1, C) of the other."""
        if view_of(node) is None or node.inputs[0] not in self.flat:
            return False
        samples, *_, channels = node.inputs[0].shape
        return node.output.shape in ((samples, channels), (samples, 1, 1, channels))

    def is_before(self, value: Value) -> bool:
        """Whether an operand is what the first layer would read, or the same for all samples and pixels."""
        if not isinstance(value, Constant):
            return value in self.tensors
        return math.prod(compact(value.array).shape[:-1]) == 1

    def flattens(self, node: Node) -> bool:
        """Whether a node makes (N, H·H·C) or (N, 1, 1, H·H·C) of images (N, H, H, C)."""
        images = self.flattened.get(node.inputs[0], node.inputs[0])
        return (
            isinstance(view_of(node), Reshape)
            and images in self.tensors
            and len(images.shape) == 4
            and images.shape[1] == images.shape[2]
            and node.output.shape in ((rows := images.shape[0], images.size // rows), (rows, 1, 1, images.size // rows))
        )

    def read_conversion(self, node: Node, operation: Quantize | Dequantize) -> None:
        """A conversion is part of the layer that reads its result, which lies as its operand does."""
        (value,) = node.inputs
        if value in self.flattened:
            self.flattened[node.output] = value = self.flattened[value]
        else:
            self.tensors[node.output] = self.tensor(value)
        if value in self.flat:
            self.flat.add(node.output)
        if isinstance(operation, Quantize):
            self.quantized[node.output] = operation.scale
        else:
            self.stored[self.tensor(value)] = operation.scale

    def read_convolution(self, node: Node, operation: FusedConvolution) -> None:
        images, _, _, *residuals = node.inputs
        kernel, bias = (constant.array for constant in weights(node))
        window = operation.window
        is_dense = images in self.flat or images in self.flattened
        if is_dense and not operation.is_dense:
            raise NotLayered("convolutions of flattened images")
        if images in self.flattened:  # a window as large as the images
            images = self.flattened[images]
            kernel = kernel.reshape(*images.shape[1:], -1)
            window = Window.square(images.shape[1], 1, ((0, 0), (0, 0)))
        if window.dilation != (1, 1):
            raise NotLayered("convolutions with dilation")
        if operation.dtype != "float32" and not operation.is_integer:
            raise NotLayered(f"convolutions in {operation.dtype}")
        if not len({*window.size}) == len({*window.stride}) == len({*window.padding}) == 1:
            raise NotLayered("convolutions whose window isn't a square with the same padding along both axes")
        if residuals and self.tensor(residuals[0]) is None:
            raise NotLayered("residuals that are the inputs")
        name = self.add(
            Kind.DENSE if is_dense else Kind.CONV,
            layer_name(node),
            images,
            node.output,
            kernel=window.size[0],
            stride=window.stride[0],
            padding=window.padding[0],
            groups=operation.groups,
            residual=self.tensor(residuals[0]) if residuals else None,
            activation=operation.activation,
            quantized=operation.dtype if operation.is_integer else "",
        )
        self.params |= {f"{name}.kernel": kernel, f"{name}.bias": bias}
        if operation.is_integer:
            self.integers[name] = Integers(operation.scales, operation.out_dtype, self.quantized.get(node.inputs[0]))
        if is_dense:
            self.flat.add(node.output)

    def pads_max_pool(self, node: Node) -> bool:
        """Whether a node pads the output of a ReLU with zeros, which raise no maximum, for a max pooling."""
        images, zero = node.inputs
        samples, rows, columns, channels = node.params["padding_config"]
        reader = self.uses.only_reader(node.output)
        pool = None if reader is None else max_pool_of(reader)
        maker = next((layer for layer in self.layers if layer.name == self.tensors.get(images)), None)
        return (
            uniform_value(zero) == 0
            and maker is not None
            and maker.activation in ("RELU", "RELU6", "SIGMOID")
            and samples == channels == (0, 0, 0)
            and rows == columns == (*rows[:2], 0)
            and pool is not None
            and min(rows) >= 0
            # Every window reads an image, as what adds nothing and zeros together are narrower.
            and max(rows) + max(map(max, pool.padding)) < min(pool.sizes[1:3])
        )

    def read_max_pool(self, node: Node, pool: Pool) -> None:
        if len(pool.sizes) != 4:
            raise NotLayered("max pooling of what isn't images")
        images, padding = node.inputs[0], pool.padding[1:3]
        if (padded := self.padded.get(images)) is not None:
            images = padded.inputs[0]
            before = padded.params["padding_config"][1:3]
            padding = [
                (low + int(more), high + int(most))
                for (low, high), (more, most, _) in zip(padding, before, strict=True)
            ]
        around, size, stride = {*padding}, pool.sizes[1], pool.strides[1]
        of_pixels = (pool.sizes, pool.strides) == ((1, size, size, 1), (1, stride, stride, 1))
        if not of_pixels or {*pool.padding[0], *pool.padding[-1]} != {0} or len(around) != 1:
            raise NotLayered("max pooling whose window isn't a square with the same padding along both axes")
        self.add(
            Kind.MAX_POOL,
            "max_pool",
            images,
            node.output,
            kernel=size,
            stride=stride,
            padding=around.pop(),
        )

    def read_mean(self, node: Node) -> None:
        images, scaled = node.inputs[0], self.uses.only_reader(node.output)
        pixels = math.prod(images.shape[1:3])
        if tuple(node.params["axes"]) != (1, 2) or scaled is None or not _divides(scaled, node.output, pixels):
            raise NotLayered("a sum that isn't the mean over all pixels")
        self.add(Kind.MEAN_POOL, "mean_pool", images, scaled.output)
        self.flat.add(scaled.output)
        self.absorbed.add(scaled)

    def add(self, kind: Kind, name: str, read: Value, made: Value, **window: Any) -> str:
        """Adds a layer, and returns its name, which is made unique."""
        others = sum(layer.name == name or layer.name.startswith(f"{name}#") for layer in self.layers)
        unique = f"{name}#{others + 1}" if others else name
        self.layers.append(LayerSpec(unique, kind, self.tensor(read), _sample(read), _sample(made), **window))
        self.tensors[made] = unique
        return unique

    def tensor(self, value: Value) -> str | None:
        if value not in self.tensors:
            raise NotLayered("a layer that reads what isn't the output of one")
        return self.tensors[value]


def _sample(value: Value) -> tuple[int, int, int]:
    """(H, W, C) of a sample of (N, H, W, C) or (N, C)."""
    rows, columns, channels = (1, 1, *value.shape[1:])[-3:]
    return rows, columns, channels


def _divides(node: Node, value: Value, divisor: int) -> bool:
    """Whether a node divides `value` by a number."""
    others = [other for other in node.inputs if other is not value]
    if len(others) != 1:
        return False
    factor = uniform_value(others[0])
    match node.name:
        case "div":
            return node.inputs[0] is value and factor == divisor
        case "mul":
            return factor is not None and math.isclose(factor, 1 / divisor, rel_tol=1e-6)
    return False
