import re

import pytest

from cambrian.models.resnet.architecture import DEPTHS, Architecture
from cambrian.models.resnet.network import network
from cambrian.sharding import Kind, LayerSpec, UsageError

CONV, MAX_POOL, MEAN_POOL, DENSE = Kind.CONV, Kind.MAX_POOL, Kind.MEAN_POOL, Kind.DENSE


def test_network_of_a_small_bottleneck_resnet_on_an_odd_image():
    # Sizes by PyTorch's rule, floor((size + 2 padding - kernel) / stride) + 1: 17 → 9 → 5 → 3.
    assert network(Architecture("imagenet", (1, 2), True, 5, width=4), 17) == (
        LayerSpec("conv1", CONV, None, (17, 17, 3), (9, 9, 4), 7, 2, (3, 3), activation="RELU"),
        LayerSpec("max_pool", MAX_POOL, "conv1", (9, 9, 4), (5, 5, 4), 3, 2, (1, 1)),
        LayerSpec("layer1.0.conv1", CONV, "max_pool", (5, 5, 4), (5, 5, 4), 1, 1, (0, 0), activation="RELU"),
        LayerSpec("layer1.0.conv2", CONV, "layer1.0.conv1", (5, 5, 4), (5, 5, 4), 3, 1, (1, 1), activation="RELU"),
        LayerSpec("layer1.0.downsample.conv", CONV, "max_pool", (5, 5, 4), (5, 5, 16), 1, 1, (0, 0)),
        LayerSpec(
            "layer1.0.conv3",
            CONV,
            "layer1.0.conv2",
            (5, 5, 4),
            (5, 5, 16),
            1,
            1,
            (0, 0),
            residual="layer1.0.downsample.conv",
            activation="RELU",
        ),
        LayerSpec("layer2.0.conv1", CONV, "layer1.0.conv3", (5, 5, 16), (5, 5, 8), 1, 1, (0, 0), activation="RELU"),
        LayerSpec("layer2.0.conv2", CONV, "layer2.0.conv1", (5, 5, 8), (3, 3, 8), 3, 2, (1, 1), activation="RELU"),
        LayerSpec("layer2.0.downsample.conv", CONV, "layer1.0.conv3", (5, 5, 16), (3, 3, 32), 1, 2, (0, 0)),
        LayerSpec(
            "layer2.0.conv3",
            CONV,
            "layer2.0.conv2",
            (3, 3, 8),
            (3, 3, 32),
            1,
            1,
            (0, 0),
            residual="layer2.0.downsample.conv",
            activation="RELU",
        ),
        LayerSpec("layer2.1.conv1", CONV, "layer2.0.conv3", (3, 3, 32), (3, 3, 8), 1, 1, (0, 0), activation="RELU"),
        LayerSpec("layer2.1.conv2", CONV, "layer2.1.conv1", (3, 3, 8), (3, 3, 8), 3, 1, (1, 1), activation="RELU"),
        LayerSpec(
            "layer2.1.conv3",
            CONV,
            "layer2.1.conv2",
            (3, 3, 8),
            (3, 3, 32),
            1,
            1,
            (0, 0),
            residual="layer2.0.conv3",
            activation="RELU",
        ),
        LayerSpec("mean_pool", MEAN_POOL, "layer2.1.conv3", (3, 3, 32), (1, 1, 32)),
        LayerSpec("fc", DENSE, "mean_pool", (1, 1, 32), (1, 1, 5)),
    )


def test_network_of_a_small_basic_resnet():
    assert network(Architecture("cifar", (1, 1), False, 5, width=4), 8) == (
        LayerSpec("conv1", CONV, None, (8, 8, 3), (8, 8, 4), 3, 1, (1, 1), activation="RELU"),
        LayerSpec("layer1.0.conv1", CONV, "conv1", (8, 8, 4), (8, 8, 4), 3, 1, (1, 1), activation="RELU"),
        LayerSpec(
            "layer1.0.conv2",
            CONV,
            "layer1.0.conv1",
            (8, 8, 4),
            (8, 8, 4),
            3,
            1,
            (1, 1),
            residual="conv1",
            activation="RELU",
        ),
        LayerSpec("layer2.0.conv1", CONV, "layer1.0.conv2", (8, 8, 4), (4, 4, 8), 3, 2, (1, 1), activation="RELU"),
        LayerSpec("layer2.0.downsample.conv", CONV, "layer1.0.conv2", (8, 8, 4), (4, 4, 8), 1, 2, (0, 0)),
        LayerSpec(
            "layer2.0.conv2",
            CONV,
            "layer2.0.conv1",
            (4, 4, 8),
            (4, 4, 8),
            3,
            1,
            (1, 1),
            residual="layer2.0.downsample.conv",
            activation="RELU",
        ),
        LayerSpec("mean_pool", MEAN_POOL, "layer2.0.conv2", (4, 4, 8), (1, 1, 8)),
        LayerSpec("fc", DENSE, "mean_pool", (1, 1, 8), (1, 1, 5)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "num_layers"), [("imagenet", 104 + 3), ("cifar", 104 + 2)])
def test_resnet101_has_104_convolutions(stem, num_layers):
    layers = network(Architecture.resnet(101, stem, 10), 32)
    assert len(layers) == num_layers
    assert sum(layer.kind == CONV for layer in layers) == 104


@pytest.mark.parametrize("depth", [pytest.param(depth, marks=[pytest.mark.slow] * (depth > 34)) for depth in DEPTHS])
@pytest.mark.parametrize(("stem", "image_size"), [("imagenet", 224), ("imagenet", 33), ("cifar", 32), ("cifar", 1)])
def test_each_layer_reads_layers_before_it_of_matching_shape(depth, stem, image_size):
    out_shapes: dict[str | None, tuple[int, int, int]] = {None: (image_size, image_size, 3)}
    for layer in network(Architecture.resnet(depth, stem, 10), image_size):
        assert layer.name not in out_shapes
        assert out_shapes[layer.input] == layer.in_shape
        assert layer.residual is None or out_shapes[layer.residual] == layer.out_shape
        assert min(layer.out_shape) >= 1
        out_shapes[layer.name] = layer.out_shape
    assert out_shapes["fc"] == (1, 1, 10)


# Multiplications and additions, counted as one, that torchvision states for these models at 224 pixels, in 1e9.
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "gmacs"), [(18, 1.81), (34, 3.66), (50, 4.09), (101, 7.80), (152, 11.51)])
def test_flops_are_those_that_torchvision_states(depth, gmacs):
    layers = network(Architecture.resnet(depth, "imagenet", 1000), 224)
    assert round(sum(layer.flops for layer in layers) / 2e9, 2) == pytest.approx(gmacs, abs=0.011)


@pytest.mark.parametrize("depth", DEPTHS)
def test_depth_and_name_follow_from_the_blocks(depth):
    architecture = Architecture.resnet(depth, "cifar", 10)
    assert (architecture.depth, architecture.name) == (depth, f"resnet{depth}")
    assert hash(architecture) == hash(Architecture.resnet(depth, "cifar", 10))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Architecture.resnet(20, "cifar", 10), "one of 18, 34, 50, 101, 152, got 20"),
        (lambda: Architecture.resnet(18, "mnist", 10), "one of imagenet, cifar, got 'mnist'"),
        (lambda: Architecture.resnet(18, "cifar", 0), "got 0 classes"),
        (lambda: Architecture("cifar", (), True, 10), "got blocks ()"),
        (lambda: Architecture("cifar", (1, 0), True, 10), "got blocks (1, 0)"),
        (lambda: Architecture("cifar", (1,), True, 10, width=0), "width 0"),
        (lambda: network(Architecture.resnet(18, "cifar", 10), 0), "at least 1 pixel, got 0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        make()
