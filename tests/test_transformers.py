"""The same network in transformers, where it is installed: its checkpoints here, and ours there."""

import numpy as np
import pytest

from cambrian.models.checkpoints.description import Description
from cambrian.models.checkpoints.export import export_hugging_face
from cambrian.models.checkpoints.weights import Weights, read_weights
from cambrian.models.resnet.architecture import DEPTHS, Architecture
from cambrian.models.resnet.variables import random_variables
from cambrian.sharding import Preprocessing
from unsharded import inference_function, relative_error

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)


def their_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(IMAGES.transpose(0, 3, 1, 2))).logits.numpy()


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_checkpoint_of_transformers_gives_its_logits(tmp_path, depth):
    blocks, bottleneck = DEPTHS[depth]
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * 2**stage * (4 if bottleneck else 1) for stage in range(4)],
        depths=list(blocks),
        layer_type="bottleneck" if bottleneck else "basic",
        num_labels=5,
    )
    torch.manual_seed(depth)
    model = transformers.ResNetForImageClassification(config)
    with torch.no_grad():  # a new model's statistics are 0 and 1
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "normalization.bias")):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    weights = read_weights(tmp_path)
    assert weights.architecture == Architecture("imagenet", blocks, bottleneck, 5, width=8)
    logits = inference_function(weights.architecture, weights.variables)(IMAGES)
    assert relative_error(logits, their_logits(model)) <= 2e-6


def test_transformers_loads_an_export_to_the_same_logits(tmp_path):
    architecture = Architecture("imagenet", (1, 2), True, 3, width=8)
    variables = random_variables(architecture)
    description = Description(Preprocessing((224, 224), (256, 256), interpolation="bicubic"), ("a", "b", "c"))
    export_hugging_face(Weights(architecture, variables, description), tmp_path)
    model, info = transformers.ResNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # no key missing, unexpected or mismatched
    assert relative_error(inference_function(architecture, variables)(IMAGES), their_logits(model)) <= 2e-6
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
