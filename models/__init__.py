"""What is computed: ResNets, their weights, and the programs made of them.

Names are imported when first used, so that a plan or a program's shapes can be had without Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.architecture import Architecture as Architecture, network as network
    from models.cost_files import current_cost_table as current_cost_table, read_table as read_table
    from models.cost_table import CostTable as CostTable
    from models.description import Description as Description
    from models.export import export_hugging_face as export_hugging_face
    from models.folding import fold as fold
    from models.planning import layer_costs as layer_costs, make_plan as make_plan
    from models.program import build_program as build_program
    from models.resnet import ResNet as ResNet, load_variables as load_variables, variables_of as variables_of
    from models.tuning import tune as tune
    from models.variables import random_variables as random_variables
    from models.weights import Weights as Weights, read_weights as read_weights

_MODULES = {
    "Architecture": "architecture",
    "network": "architecture",
    "Description": "description",
    "export_hugging_face": "export",
    "fold": "folding",
    "current_cost_table": "cost_files",
    "read_table": "cost_files",
    "CostTable": "cost_table",
    "layer_costs": "planning",
    "make_plan": "planning",
    "build_program": "program",
    "ResNet": "resnet",
    "load_variables": "resnet",
    "variables_of": "resnet",
    "tune": "tuning",
    "random_variables": "variables",
    "Weights": "weights",
    "read_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.{_MODULES[name]}"), name)
