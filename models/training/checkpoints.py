"""Checkpoints of a training, by orbax: one folder for each step kept, with the state and the facts to go on from it.

A checkpoint gets its name by one rename when it is complete, so a kill at any moment leaves the one before it.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cambrian.models.checkpoints.description import Description
from cambrian.models.resnet.architecture import Architecture
from cambrian.models.training.steps import TrainState, trained_variables
from cambrian.sharding import UsageError

_STATE, _FACTS = "state", "facts"
_NUM_KEPT = 2  # the last, and the one before it in case that the disk fills up


class Checkpoints:
    """The checkpoints of one training in a folder, which is made if it is missing."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()  # orbax takes no other
        # Written before the next step, whose donated buffers are those that are being written.
        options = ocp.CheckpointManagerOptions(max_to_keep=_NUM_KEPT, enable_async_checkpointing=False)
        handlers = {_STATE: ocp.PyTreeCheckpointHandler(), _FACTS: ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Writes a checkpoint of the state's step, and removes old ones; `facts` are JSON-compatible.

        Raises:
          OSError: if it can't be written.
        """
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(_tree_of(state)), facts=ocp.args.JsonSave(facts))
        self._manager.save(int(state.step), args=args, force=True)

    def facts(self, step: int) -> dict[str, Any]:
        """The facts of a checkpoint.

        Raises:
          UsageError: if it can't be read.
        """
        with _reading(self.folder / str(step)):
            return self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))[_FACTS]

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a checkpoint.

        Args:
          like: a state of the same shapes and dtypes; what is restored gets its shardings.

        Raises:
          UsageError: if it can't be read.
        """
        tree = _tree_of(like)
        args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        with _reading(self.folder / str(step)):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=args))[_STATE]
        flat = [_leaf(restored, path) for path, _ in jax.tree.leaves_with_path(like)]
        return jax.tree.unflatten(jax.tree.structure(like), flat)

    def read(self, step: int) -> dict[str, Any]:
        """The arrays of a checkpoint on the host, whatever devices it was written from: one dict for each field."""
        with _reading(self.folder / str(step)):
            tree = self._manager.item_metadata(step)[_STATE].tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            args = ocp.args.PyTreeRestore(restore_args=args)
            return self._manager.restore(step, args=ocp.args.Composite(state=args))[_STATE]


def read_trained(path: Path) -> tuple[Architecture, dict[str, np.ndarray], Description, tuple[str, ...]]:
    """Reads the trained network of a checkpoint: the averaged weights where the training kept an average.

    Args:
      path: the folder of one step, or that of all, of which the newest is taken.

    Returns:
      The architecture, its variables, what the checkpoint tells of preprocessing and labels, and no notes.

    Raises:
      UsageError: if it is no checkpoint or can't be read.
    """
    folder, step = (path.parent, int(path.name)) if path.name.isdecimal() else (path, None)
    steps = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and (entry / _STATE).is_dir()]
    if not steps or (step is not None and step not in steps):
        raise UsageError(
            f"weights need to be a file, a model folder with config.json, or a checkpoint of a training, got {path}"
        )
    checkpoints, step = Checkpoints(folder), max(steps) if step is None else step
    facts, state = checkpoints.facts(step), checkpoints.read(step)
    fields = {name: state.get(name, {}) for name in TrainState._fields}
    variables = {name: np.asarray(value) for name, value in trained_variables(TrainState(**fields)).items()}
    with _reading(path):
        told = facts["architecture"] | {"blocks": tuple(facts["architecture"]["blocks"])}
        return Architecture(**told), variables, Description.from_json(facts["description"], path), ()


def model_facts(architecture: Architecture, description: Description) -> dict[str, Any]:
    """What `read_trained` needs among the facts of a checkpoint."""
    return {"architecture": dataclasses.asdict(architecture), "description": description.to_json()}


def _tree_of(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts without empty ones; the optimizer's leaves are named by their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        field, *rest = path
        if rest:
            tree.setdefault(_name(field), {})[_key(rest)] = leaf
        else:
            tree[_name(field)] = leaf
    return tree


def _leaf(tree: dict[str, Any], path: tuple[Any, ...]) -> jax.Array:
    field, *rest = path
    return tree[_name(field)][_key(rest)] if rest else tree[_name(field)]


def _name(entry: Any) -> str:
    return entry.name  # GetAttrKey, of a NamedTuple's field


def _key(rest: list[Any]) -> str:
    return jax.tree_util.keystr(tuple(rest), simple=True, separator="|")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever orbax, tensorstore and a damaged JSON make of it
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"a complete checkpoint of a training is needed, got {path}: {reason}") from error
