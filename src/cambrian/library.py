"""The library: a model becomes an executable in one call. What main.py does with flags, with arguments."""

import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import jax
import numpy as np
from jax.sharding import Mesh

from cambrian import engine
from cambrian.commands.calibration import read_calibration
from cambrian.commands.classifier import Classifier
from cambrian.commands.configuration import (
    CALIBRATE_S,
    PRECISIONS,
    RANGES,
    Configuration,
    check_range,
)
from cambrian.commands.console import elapsed_time
from cambrian.commands.model import Model, default_model, read_model
from cambrian.commands.program.build import check_int8
from cambrian.commands.program.function import classifier_program, function_program, name_of
from cambrian.commands.program.options import BuildOptions
from cambrian.commands.program.resnet import model_program
from cambrian.engine.artifact.layout import read_artifact
from cambrian.executable import Cards, Executable
from cambrian.sharding import (
    PARTITIONS,
    MeshShape,
    Rules,
    UsageError,
    make_mesh,
    shape_and_devices,
    without_context_mesh,
)
from cambrian.sharding.host import (
    acquire_devices,
    divide_host,
    launches_at_once,
    launches_run_side_by_side,
    return_freed_memory,
)

if TYPE_CHECKING:
    from cambrian.models import Calibration
    from cambrian.models.graph.optimized_function import OptimizedFunction

_ON_CPU = ("auto", "cpu")


def resnet(
    weights: str | os.PathLike = "auto",
    *,
    depth: int | None = None,
    stem: str | None = None,
    num_classes: int | None = None,
    image_size: int = 0,
    resize: int = 0,
    seed: int = 0,
) -> Model:
    """A ResNet v1.5 (He et al., arXiv:1512.03385, with the stride on the 3×3 convolution).

    Args:
      weights: a checkpoint, which has its own depth, stem and classes: a safetensors or PyTorch file under the names of
        torchvision, timm or Hugging Face, a model folder of Hugging Face or timm, or a checkpoint of Cambrian's
        training. `random` draws random weights; `auto` takes the ones that ship with Cambrian, for a ResNet101 with the
        CIFAR stem and its 10 classes, and random ones for any other network.
      depth: number of layers, 18, 34, 50, 101 or 152; None for the checkpoint's, else 101.
      stem: `cifar` (3×3) or `imagenet` (7×7, stride 2, max pooling); None for the checkpoint's, else `cifar`.
      num_classes: number of logits; None for the checkpoint's, else 10 with the CIFAR stem and 1000 with the other.
      image_size: height and width of the images in pixels; 0 for the checkpoint's, else 32 or 224.
      resize: shorter side in pixels to which images are resized before they are cropped, for a checkpoint that doesn't
        state it; 0 for the default.
      seed: of random weights.

    Raises:
      UsageError: if the checkpoint can't be read, naming file and key, or an argument is out of its range or
        contradicts it.
    """
    config = dataclasses.replace(default_model(stem or "cifar"), depth=101 if depth is None else depth)
    if num_classes not in (None, config.num_classes):
        config = dataclasses.replace(config, num_classes=num_classes, labels=())
    model = read_model(
        Configuration(
            model=config,
            mesh=MeshShape(1, 1),
            weights=os.fspath(weights),
            image_size=image_size,
            resize=resize,
            seed=seed,
        )
    )
    for name, asked in (("depth", depth), ("stem", stem), ("num_classes", num_classes)):
        if asked not in (None, found := getattr(model.config, name)):
            raise UsageError(f"{name} must be that of the weights, {found}, or left out, got {asked}")
    return model


def compile(
    model: Model | Classifier | Callable[..., jax.Array] | Any,
    params: Any = None,
    spec: Any = None,
    *,
    mesh: str | MeshShape | Mesh = "1x1",
    batch_size: int = 0,
    precision: str = "auto",
    partition: str = "auto",
    rules: Rules | None = None,
    platform: str = "auto",
    threads: int = 2,
    name: str = "",
    tolerance: float | None = None,
    calibrate_s: float = CALIBRATE_S,
    calibration: Any = None,
    max_top1_drop: float = 0.5,
) -> Executable:
    """Compiles a model for a mesh, ahead of time.

    Starts JAX's backend with virtual CPU devices where there are no accelerators, and so changes process-wide settings:
    `cambrian.host` lists and declines them.

    Args:
      model: a model of `resnet`; a `Classifier`; a Flax NNX, Equinox or Keras model, also in `jax.jit`, which is
        computed in evaluation mode; a Flax Linen module or a Haiku transform; or a function of (params, inputs). Inputs
        and results are arrays (N, …), alone or in plain dicts, lists and tuples.
      params: of a function, Linen module or Haiku transform: any pytree of arrays; the state of an Equinox model that
        has one.
      spec: of a module or function: shape and dtype of one sample, such as `jax.ShapeDtypeStruct((224, 224, 3),
        "float32")`, or one for each array in dicts, lists and tuples.
      mesh: MODELxDATA: number of devices that cut each layer × number of devices that cut the batch; or a
        `jax.sharding.Mesh` with the axes `model` and `data`, of devices that are there. Both axes cut the batch of a
        function that consists of more than layers (see `partition`) and comes without rules.
      batch_size: number of samples of a launch over all devices, a multiple of DATA, or of MODEL × DATA where both
        cut the batch; 0 lets Cambrian choose.
      precision: float32, bfloat16, int8 (see docs/int8.md), or auto: for a ResNet bfloat16 where it is faster,
        otherwise the model's own.
      partition: how the model axis cuts layers: auto, samples, rows, channels or intra_sample. The last three need a
        model that consists of layers alone, as ResNets and MobileNets do: see docs/models.md.
      rules: of a module or function: (pattern, PartitionSpec) pairs; the first pattern found in a parameter's path
        decides how it lies on the mesh, and XLA partitions the function as it is. None holds all parameters on every
        device, and optimises the function: see docs/models.md.
      platform: cpu, gpu, tpu, or auto.
      threads: number of host threads that will launch it: launches on one CPU device, in bfloat16 or int8,
        compute side by side, unless JAX's backend runs already.
      name: of the program of a classifier, module or function; empty for the model's own.
      tolerance: of a classifier, module or function: largest relative error of the outputs against float32 on one
        device; None for 1e-4, or 2e-2 in bfloat16; in int8 against the same integers.
      calibrate_s: seconds in which to measure what decides a ResNet's plan, precision and batch size, where no cost
        table of this machine is there, and the lowerings of a function; 0 for none. What was measured is kept in the
        user's cache folder.
      calibration: of int8: inputs (M, …), at least 16, an array or a pytree of arrays as the model takes them; for a
        ResNet or classifier also a folder of images, `cifar10` or `cifar10_sample`, which None means.
      max_top1_drop: of int8: percentage points of top-1 that may be lost on the calibration inputs, by each output (N,
        classes).

    Raises:
      UsageError: if an argument is out of its range, the devices don't suffice, the mesh can't cut the model, or the
        machine can't compute in int8.
      OutOfMemory: if no plan fits the devices.
    """
    if model is None or isinstance(model, (str, os.PathLike)):
        raise TypeError(f"expected a model, such as cambrian.resnet(PATH), a module or a function, got {model!r}")
    if not isinstance(mesh, (str, MeshShape, Mesh)):
        raise UsageError(f"a mesh must be written MODELxDATA, such as '4x8', or be a jax.sharding.Mesh, got {mesh!r}")
    shape, devices = shape_and_devices(mesh) if isinstance(mesh, Mesh) else (mesh, None)
    shape = MeshShape.parse(shape) if isinstance(shape, str) else shape
    if devices is not None and platform not in ("auto", devices[0].platform):
        raise UsageError(f"platform must be that of the mesh's devices, {devices[0].platform}, got {platform}")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if partition not in PARTITIONS:
        raise UsageError(f"partition must be one of {', '.join(PARTITIONS)}, got {partition!r}")
    for argument, number in (("threads", threads), ("batch_size", batch_size)):
        if not isinstance(number, numbers.Integral):
            raise UsageError(f"{argument} must be a whole number, got {number!r}")
        check_range(argument, int(number), *RANGES[argument])
    if tolerance is not None:
        check_range("tolerance", tolerance, 0, math.inf)
    check_range("calibrate_s", calibrate_s, *RANGES["calibrate_s"])
    check_range("max_top1_drop", max_top1_drop, *RANGES["max_top1_drop"])
    if calibration is not None and precision != "int8":
        raise UsageError(f"calibration belongs to precision int8, got it with {precision}")
    if isinstance(model, (Model, Classifier)) and (params, spec, rules) != (None, None, None):
        kind = "ResNet" if isinstance(model, Model) else "classifier"
        raise UsageError(f"params, spec and rules belong to a function or module, got them with a {kind}")
    is_planned = isinstance(model, Model)
    chosen = "float32" if precision == "auto" and not is_planned else precision
    at_once = launches_at_once(shape.num_devices, threads, chosen) if platform in _ON_CPU else 1
    return_freed_memory(shape.num_devices)
    notes = ()
    if devices is None:
        devices, notes = acquire_devices(shape.num_devices, platform, at_once)
    if not launches_run_side_by_side():  # a backend that already runs keeps its threads
        at_once = 1
    device_mesh = make_mesh(shape, devices)
    quantization, told = None, ()
    if precision == "int8":
        quantization, told = _calibration(model, calibration, max_top1_drop, devices[0].platform)
    options = BuildOptions(
        batch_size=batch_size,
        precision=precision,
        partition=partition,
        launches_at_once=at_once,
        calibrate_s=calibrate_s,
        calibration=quantization,
    )
    with without_context_mesh(but=None if rules is None else device_mesh):
        if is_planned:
            program = model_program(model, device_mesh, options)
        elif isinstance(model, Classifier):
            program = classifier_program(model, device_mesh, options, name=name, tolerance=tolerance)
        else:
            program = function_program(
                model, params, spec, device_mesh, options, rules=rules, name=name, tolerance=tolerance
            )
        executable = engine.compile_program(program)
    return Executable.of(dataclasses.replace(executable, notes=(*notes, *told, *executable.notes)))


def _calibration(model: Any, given: Any, max_top1_drop: float, platform: str) -> tuple["Calibration", tuple[str, ...]]:
    from cambrian.models import Calibration

    check_int8(platform)
    if given is not None and not isinstance(given, (str, os.PathLike)):
        arrays = jax.tree.leaves(given)
        for each in arrays or [given]:
            if not isinstance(each, (np.ndarray, jax.Array)) or each.ndim == 0 or each.dtype.kind in "OSU":
                got = f"{each.shape} {each.dtype}" if isinstance(each, np.ndarray) else type(each).__name__
                raise UsageError(f"calibration must be an array of inputs (M, …), or a pytree of them, got {got}")
        return Calibration(jax.tree.map(np.asarray, given), "the caller's", max_top1_drop=max_top1_drop), ()
    named = "cifar10_sample" if given is None else os.fspath(given)
    if isinstance(model, Model):
        config = model.config
        facts = config.preprocessing, config.labels, config.num_classes, model.trained
    elif isinstance(model, Classifier):
        facts = model.preprocessing, model.labels, len(model.labels), model.trained
    else:
        raise UsageError(f"precision int8 needs calibration, inputs (M, …) of the function or module, got {given}")
    return read_calibration(*facts, calibration_data=named, max_top1_drop=max_top1_drop)


def optimize(model: Any, params: Any = None, *, precision: str = "auto") -> "OptimizedFunction":
    """Rewrites a function for this machine's first device, to be called inside the user's own `jax.jit`.

    Args:
      model: a function of (params, *inputs), pytrees in and out, or a model of Flax, Equinox, Haiku or Keras.
      params: of a function, Linen module or Haiku transform: any pytree of arrays; the state of an Equinox model that
        has one.
      precision: float32, bfloat16, or auto, which is the function's own.

    Returns:
      The function of *inputs; it keeps the parameters of this call, whatever training makes of them. At its first call
      with inputs of new shapes it is rewritten, measured, and compared with `model` on random inputs; in float32, where
      it isn't right and faster, `model` is computed as it is, and `notes` say so.

    Raises:
      UsageError: if `model` is no such model, or the precision is unknown; at a call, if the results in bfloat16 differ
        by more than 2e-2.
    """
    if precision == "int8":
        raise UsageError("int8 is calibrated: cambrian.compile takes the calibration, cambrian.optimize none")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    from cambrian.models.frameworks import as_function
    from cambrian.models.graph.optimized_function import OptimizedFunction

    function, values = as_function(model, params)
    chosen = "float32" if precision == "auto" else precision
    shown = functools.partial(elapsed_time, f"optimising {name_of(model)}")
    return OptimizedFunction(function, values, chosen, jax.devices()[0], shown)


@overload
def load(
    path: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    signing_key: str | os.PathLike | None = None,
) -> Executable: ...
@overload
def load(path: str | os.PathLike, *, cards: int, signing_key: str | os.PathLike | None = None) -> Cards: ...
def load(
    path: str | os.PathLike,
    *,
    devices: Sequence[jax.Device] | None = None,
    cards: int | None = None,
    signing_key: str | os.PathLike | None = None,
) -> Executable | Cards:
    """Loads an artefact, runs its probe and compares the outputs with the unsharded float32 model's.

    Nothing is traced or compiled where the artefact was saved by this user, on the same kind of machine and with the
    same versions, and holds machine code. Otherwise its portable program is compiled, and `notes` say why. Flax isn't
    needed.

    Args:
      devices: where to run, in mesh order; None for those of the artefact's platform.
      cards: number of processes that each load it on their share of the cores, or on GPUs of their own; None loads it
        in this process.
      signing_key: the user's key file; None for the default one.

    Raises:
      DamagedArtifact: naming the file that is missing, cut short, altered, of another key, or not to be trusted.
      UsageError: if there is no such directory, or the devices or cores don't suffice.
      OutOfMemory: if the memory doesn't hold it.
      ParityError: if the probe's outputs are too far from the reference.
      CardsEnded: if the processes of all cards died.
    """
    key = None if signing_key is None else Path(signing_key)
    if cards is None:
        return Executable.of(engine.load(Path(path), devices=devices, signing_key=key))
    if devices is not None:
        raise UsageError(f"cards have devices of their own: leave devices out, got {len(devices)}")
    check_range("cards", cards, *RANGES["cards"])
    manifest, _ = read_artifact(Path(path), None)
    _, shares, notes = divide_host(cards, manifest.mesh.num_devices, manifest.platform)
    return Cards.start(shares, functools.partial(_load_card, Path(path), key), notes=notes)[0]


def _load_card(path: Path, signing_key: Path | None) -> tuple[engine.Executable, None]:
    return engine.load(path, signing_key=signing_key), None
