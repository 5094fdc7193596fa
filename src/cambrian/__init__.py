"""A sharded inference engine for JAX: a device mesh, a plan, one ahead-of-time compiled executable.

    model = cambrian.resnet("weights.safetensors")
    executable = cambrian.compile(model, mesh="4x8", batch_size=256)
    predictions = executable.classify("folder")

Names are imported when first used. What isn't in `__all__` may change without notice.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import version

    from cambrian.commands.classifier import Classifier
    from cambrian.commands.images import UnreadableImage
    from cambrian.commands.model import Model
    from cambrian.commands.run.classify import Prediction
    from cambrian.engine import (
        Analysis,
        ArtifactExists,
        CardsEnded,
        DamagedArtifact,
        Parity,
        ParityError,
        Portable,
        load_portable,
    )
    from cambrian.executable import Cards, Executable
    from cambrian.library import compile, load, optimize, resnet
    from cambrian.sharding import MeshShape, OutOfMemory, Preprocessing, Program, TensorSpec, UsageError
    from cambrian.sharding.host import HostSettings, host

    __version__ = version("cambrian")

__all__ = [
    "Analysis",
    "ArtifactExists",
    "Cards",
    "CardsEnded",
    "Classifier",
    "DamagedArtifact",
    "Executable",
    "HostSettings",
    "MeshShape",
    "Model",
    "OutOfMemory",
    "Parity",
    "ParityError",
    "Portable",
    "Prediction",
    "Preprocessing",
    "Program",
    "TensorSpec",
    "UnreadableImage",
    "UsageError",
    "__version__",
    "compile",
    "host",
    "load",
    "load_portable",
    "optimize",
    "resnet",
]

_MODULES = {
    "Analysis": "engine",
    "ArtifactExists": "engine",
    "Cards": "executable",
    "CardsEnded": "engine",
    "Classifier": "commands.classifier",
    "DamagedArtifact": "engine",
    "Executable": "executable",
    "HostSettings": "sharding.host",
    "MeshShape": "sharding",
    "Model": "commands.model",
    "OutOfMemory": "sharding",
    "Parity": "engine",
    "ParityError": "engine",
    "Portable": "engine",
    "Prediction": "commands.run.classify",
    "Preprocessing": "sharding",
    "Program": "sharding",
    "TensorSpec": "sharding",
    "UnreadableImage": "commands.images",
    "UsageError": "sharding",
    "compile": "library",
    "host": "sharding.host",
    "load": "library",
    "load_portable": "engine",
    "optimize": "library",
    "resnet": "library",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version(__name__)
    if name == "ray":  # a module of an extra
        return importlib.import_module(f"{__name__}.ray")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
