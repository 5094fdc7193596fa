"""What is computed: any model's graph, ResNets, checkpoints, lowerings with their costs, training, and programs.

Names are imported on first use, so that planning works without Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cambrian.models.checkpoints.export import export_hugging_face as export_hugging_face
    from cambrian.models.checkpoints.weights import Weights as Weights, read_weights as read_weights
    from cambrian.models.costs.files import current_cost_table as current_cost_table, read_table as read_table
    from cambrian.models.costs.table import CostTable as CostTable
    from cambrian.models.costs.tune import tune as tune
    from cambrian.models.execution.choose_setting import Chosen as Chosen, choose_setting as choose_setting
    from cambrian.models.execution.make_plan import make_plan as make_plan
    from cambrian.models.execution.settings import Plans as Plans, Setting as Setting
    from cambrian.models.graph.quantization import Calibration as Calibration
    from cambrian.models.resnet.architecture import Architecture as Architecture
    from cambrian.models.resnet.build_program import build_program as build_program, quantize as quantize
    from cambrian.models.resnet.flax_resnet import (
        ResNet as ResNet,
        load_variables as load_variables,
        variables_of as variables_of,
    )
    from cambrian.models.resnet.network import network as network
    from cambrian.models.resnet.variables import random_variables as random_variables

_MODULES = {
    "Architecture": "resnet.architecture",
    "Calibration": "graph.quantization",
    "Chosen": "execution.choose_setting",
    "CostTable": "costs.table",
    "Plans": "execution.settings",
    "ResNet": "resnet.flax_resnet",
    "Setting": "execution.settings",
    "Weights": "checkpoints.weights",
    "build_program": "resnet.build_program",
    "choose_setting": "execution.choose_setting",
    "current_cost_table": "costs.files",
    "export_hugging_face": "checkpoints.export",
    "load_variables": "resnet.flax_resnet",
    "make_plan": "execution.make_plan",
    "network": "resnet.network",
    "quantize": "resnet.build_program",
    "random_variables": "resnet.variables",
    "read_table": "costs.files",
    "read_weights": "checkpoints.weights",
    "tune": "costs.tune",
    "variables_of": "resnet.flax_resnet",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
