"""`--model MODULE:FUNCTION`: a classifier made by a user's function."""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from cambrian.commands.classifier import Classifier
from cambrian.commands.configuration import check_path
from cambrian.sharding import MeshShape, Program, UsageError, make_mesh, program_from_function


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class UserModel:
    """A classifier made by a user's function.

    Attributes:
      file_digest: SHA-256 of the Python file.
      stock: program of the classifier as it is, on one device, named as the function.
    """

    classifier: Classifier
    file_digest: str
    stock: Program

    def identity(self) -> dict[str, Any]:
        """Returns everything that programs of the classifier depend on, as JSON-compatible values.

        The file alone doesn't decide the computation and the parameters: it imports packages, and reads weights.
        """
        params = hashlib.sha256()
        for spec, array in zip(self.stock.param_specs, self.stock.params, strict=True):
            params.update(f"{spec.name} {spec.shape} {spec.dtype}\n".encode())
            params.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        computation = jax.jit(self.stock.apply).lower(*self.stock.abstract_arguments()).as_text()
        return {
            "name": self.stock.name,
            "file": self.file_digest,
            "computation": hashlib.sha256(computation.encode()).hexdigest(),
            "params": params.hexdigest(),
            "preprocessing": self.classifier.preprocessing.to_json(),
            "labels": list(self.classifier.labels),
            "trained": self.classifier.trained,
        }


def read_user_model(model: str, weights: str, device: jax.Device, batch_size: int) -> UserModel:
    """Imports a module, calls the function that makes the classifier, and traces the classifier.

    Args:
      model: MODULE:FUNCTION; MODULE is the path of a Python file, or a module that can be imported from the current
        folder or the environment.
      weights: path that the function is called with; auto or random call it without.
      device: any device of the mesh, which must have started before the user's code may start other devices.
      batch_size: number of images that a device computes in a launch.

    Raises:
      UsageError: if there is no such module or function; or, naming file and line, if either raises an exception, the
        function takes no weights or requires them, or doesn't return a `Classifier` that JAX can trace.
    """
    module_name, _, name = model.rpartition(":")
    if not module_name or not name.isidentifier():
        raise UsageError(f"model must be MODULE:FUNCTION, such as nets.py:mobilenet, got {model!r}")
    path = _find(module_name)
    with _blaming(path):
        source = path.read_bytes()
        module = _execute(path, source) if module_name.endswith(".py") else importlib.import_module(module_name)
    function = getattr(module, name, None)
    if not callable(function):
        got = type(function).__name__ if hasattr(module, name) else "no such name"
        raise UsageError(f"{path} must define a function {name}, got {got}")
    code = getattr(function, "__code__", None)
    with _blaming(path, code.co_firstlineno if code is not None and code.co_filename == str(path) else None):
        classifier = _call(function, weights)
        if not isinstance(classifier, Classifier):
            raise UsageError(f"{name} must return a cambrian.Classifier, got {type(classifier).__name__}")
        mesh, pixels = make_mesh(MeshShape(1, 1), [device]), classifier.pixels(batch_size)
        stock = program_from_function(*classifier.as_function(), pixels, mesh, None, name=name)
    return UserModel(classifier, hashlib.sha256(source).hexdigest(), stock)


def _find(module_name: str) -> Path:
    """Returns the file of a module, and puts the folder that it is imported from first in `sys.path`."""
    if module_name.endswith(".py"):
        path = Path(module_name)
        check_path("model", str(path))
        if not path.is_file():
            raise UsageError(f"model must name an existing Python file, got {path}")
        sys.path.insert(0, str(path.resolve().parent))
        return path
    sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(module_name)  # imports the packages that hold it
        reason = "" if spec is None else "it has no Python file"
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        spec, reason = None, _reason(error)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(f"model must name a Python file or module, got {module_name!r}{reason and f': {reason}'}")
    return Path(spec.origin)


def _execute(path: Path, source: bytes) -> ModuleType:
    # Importing would write bytecode beside the file, and after an edit within a second take the old one.
    module = ModuleType("__model__")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses, and so modules of Flax, look their annotations up
    exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def _call(function: Callable[..., Any], weights: str) -> Any:
    parameters = inspect.signature(function).parameters
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = parameters.get("weights", positional[0] if len(positional) == 1 else None)
    if weights in ("auto", "random"):
        if taken is not None and taken.default is taken.empty:
            raise UsageError(f"the function has a parameter {taken.name}: --weights PATH is required, got {weights}")
        return function()
    if taken is None:
        raise UsageError(f"the function has no parameter weights: leave --weights out, got {weights}")
    path = Path(weights)
    return function(path) if taken.kind is taken.POSITIONAL_ONLY else function(**{taken.name: path})


@contextlib.contextmanager
def _blaming(path: Path, line: int | None = None) -> Iterator[None]:
    """Raises UsageError for any error, naming the last line of `path` that led to it, or else `line`."""
    try:
        yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # SystemExit too: the user's code doesn't end the program
        place = str(path)
        if isinstance(error, SyntaxError) and error.filename:
            place, line = error.filename, error.lineno
        elif lines := [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]:
            line = lines[-1]
        where = place if line is None else f"{place}, line {line}"
        raise UsageError(f"{where}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    message = next(iter(str(error).strip().splitlines()), "")[:300]
    return f"{type(error).__name__}: {message}".removesuffix(": ")
