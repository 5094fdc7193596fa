"""Checkpoints of a training: a folder per step with the state, written by orbax, the facts to resume from, and digests.

A complete checkpoint is renamed into place, so a kill at any moment leaves the previous one intact. Its digests are
verified before anything else is read.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
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

_STATE, _FACTS, _DIGESTS = "state", "facts.json", "digests.json"
_UNFINISHED = ".unfinished-"
_OVERHEAD_BYTES = 8192  # above what the files' metadata take for each array
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in the messages of tensorstore
_NUM_KEPT = 2  # the last one, and the one before it in case the disk fills up or a file is damaged


class Checkpoints:
    """The checkpoints of one training in a folder, which the first checkpoint creates."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()  # orbax requires an absolute path
        self._orbax = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._damage: dict[int, str] = {}  # step → damage; empty for an intact checkpoint

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, intact or damaged, in ascending order."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal() and entry.is_dir())

    def latest_step(self) -> int | None:
        """Returns the step of the newest intact checkpoint; None if there are no checkpoints.

        Raises:
          UsageError: if all are damaged (names the damaged file of the newest one).
        """
        steps = self.steps()
        for step in reversed(steps):
            if not self.damage(step):
                return step
        if steps:
            raise UsageError(self.damage(steps[-1]))
        return None

    def damaged(self) -> list[str]:
        """Returns the damage of each checkpoint that is newer than the newest intact one."""
        latest = self.latest_step()
        return [self.damage(step) for step in self.steps() if latest is not None and step > latest]

    def damage(self, step: int) -> str:
        """Returns the damage of a checkpoint, naming the file; empty if all files match their digests."""
        if step not in self._damage:
            self._damage[step] = _find_damage(self.folder / str(step))
        return self._damage[step]

    def save(self, state: TrainState, facts: dict[str, Any]) -> None:
        """Writes a checkpoint of the state's step and removes old ones; `facts` is JSON-compatible.

        Raises:
          OSError: naming the checkpoint, if it can't be written.
        """
        step = int(state.step)
        path, unfinished = self.folder / str(step), self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        try:
            with _writing(path):
                unfinished.mkdir(parents=True)
                _check_space(unfinished, state)
                self._orbax.save(unfinished / _STATE, args=ocp.args.PyTreeSave(_tree_of(state)))
                _write_json(unfinished / _FACTS, facts)
                _write_json(unfinished / _DIGESTS, _digests(unfinished))
                if path.exists():  # a damaged one: the training resumed from an older one
                    shutil.rmtree(path)
                unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self._damage[step] = ""
        older = [other for other in self.steps() if other < step]
        kept = [other for other in older if not self._damage.get(other)][1 - _NUM_KEPT :]
        outdated = [self.folder / str(other) for other in older if other not in kept]
        for folder in (*outdated, *self.folder.glob(f"{_UNFINISHED}*")):  # killed processes leave unfinished ones
            shutil.rmtree(folder)

    def facts(self, step: int) -> dict[str, Any]:
        """Reads the facts of a checkpoint.

        Raises:
          UsageError: if the checkpoint can't be read.
        """
        return _read_facts(self.folder / str(step))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads the state of a checkpoint.

        Args:
          step: step of the checkpoint.
          like: a state with the shapes, dtypes and shardings to restore.

        Raises:
          UsageError: if the checkpoint can't be read.
        """
        tree = _tree_of(like)
        args = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
        with _reading(self.folder / str(step)):
            restored = self._orbax.restore(self.folder / str(step) / _STATE, args=args)
        flat = [_leaf(restored, path) for path, _ in jax.tree.leaves_with_path(like)]
        return jax.tree.unflatten(jax.tree.structure(like), flat)


def read_trained(path: Path) -> tuple[Architecture, dict[str, np.ndarray], Description, tuple[str, ...]]:
    """Reads the trained network of a checkpoint: the averaged weights if the training kept averages.

    Args:
      path: one checkpoint, whatever its folder is called, or the folder of all for the newest intact one.

    Returns:
      The architecture, its variables, the description of preprocessing and labels, and a note for each newer damaged
      checkpoint.

    Raises:
      UsageError: if the path isn't a checkpoint, can't be read, or is damaged (names the file).
    """
    notes: list[str] = []
    if not any((path / name).exists() for name in (_FACTS, _DIGESTS)):
        checkpoints = Checkpoints(path)
        step, notes = checkpoints.latest_step(), checkpoints.damaged()
        if step is None:
            raise UsageError(
                f"weights must be a file, a model folder with config.json, or a checkpoint of a training, got {path}"
            )
        path = path / str(step)
    elif damage := _find_damage(path):
        raise UsageError(damage)
    facts, state = _read_facts(path), _read_arrays(path / _STATE)
    fields = {name: state.get(name, {}) for name in TrainState._fields}
    variables = {name: np.asarray(value) for name, value in trained_variables(TrainState(**fields)).items()}
    with _reading(path):
        architecture = Architecture(**facts["architecture"] | {"blocks": tuple(facts["architecture"]["blocks"])})
        return architecture, variables, Description.from_json(facts["description"], path), tuple(notes)


def model_facts(architecture: Architecture, description: Description) -> dict[str, Any]:
    """Returns the facts of a checkpoint that `read_trained` reads."""
    return {"architecture": dataclasses.asdict(architecture), "description": description.to_json()}


def _read_facts(checkpoint: Path) -> dict[str, Any]:
    with _reading(checkpoint):
        return json.loads((checkpoint / _FACTS).read_text(encoding="utf-8"))


def _read_arrays(state: Path) -> dict[str, Any]:
    """Reads the arrays of a state to the host, whatever devices they were on: one dict per field."""
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    with _reading(state.parent):
        metadata = reader.metadata(state.absolute()).item_metadata
        assert metadata is not None
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
        return reader.restore(state.absolute(), args=ocp.args.PyTreeRestore(restore_args=args))


def _digests(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of every file in a folder except the digests themselves."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _DIGESTS:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _find_damage(folder: Path) -> str:
    try:
        stated = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise ValueError(f"got {type(stated).__name__}")
        found = _digests(folder)
    except (OSError, ValueError, RecursionError) as error:
        return f"checkpoint damaged: {folder / _DIGESTS} must state the SHA-256 of each file: {error}"
    for name, digest in stated.items():
        if found.get(name) != digest:
            return f"checkpoint damaged: {folder / name} must have the SHA-256 that {_DIGESTS} states"
    return ""


def _check_space(folder: Path, state: TrainState) -> None:
    """Raises OSError if the disk can't hold the state; where orbax finds out, its threads print pages of errors."""
    leaves = jax.tree.leaves(state)
    if shutil.disk_usage(folder).free < sum(leaf.nbytes for leaf in leaves) + _OVERHEAD_BYTES * (1 + len(leaves)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes errors of writing OSErrors that name `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except ValueError as error:
        if (code := _OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _write_json(path: Path, value: object) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _tree_of(state: TrainState) -> dict[str, Any]:
    """The state as nested dicts without empty ones; leaves of the optimizer are named by their paths."""
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
    return entry.name  # of a GetAttrKey, the key of a NamedTuple's field


def _key(rest: list[Any]) -> str:
    return jax.tree_util.keystr(tuple(rest), simple=True, separator="|")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # orbax, tensorstore and damaged JSON raise errors of many types
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"a checkpoint of a training must be readable, got {path}: {reason}") from error
