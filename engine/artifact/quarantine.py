"""The proof of an unsigned program: a child process deserialises, compiles and runs it before this process does.

The bytes of a program may be anyone's. XLA and MLIR may crash on them, take all memory, or never return; then the child
does so. It has a limit of time and one of memory, and uses the very bytes that this process uses later: it is given the
manifest, and what it reads has the digests that stand there.

On accelerators the child only deserialises the program: their devices often belong to one process, and JAX calls no
program on another platform than it was exported for.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import psutil

from cambrian.engine.artifact.contents import (
    check_probe,
    compile_portable,
    read_params,
    read_portable,
    rebuilt_executable,
)
from cambrian.engine.artifact.layout import PORTABLE, rebuild_mesh
from cambrian.engine.artifact.manifest import Manifest
from cambrian.engine.errors import DamagedArtifact, ParityError, one_line
from cambrian.engine.runtime.parity import Parity
from cambrian.sharding.host import child_environment
from cambrian.sharding.host.control_groups import control_group_bytes

TIME_LIMIT_S = 300.0  # ResNet101 on 32 devices and 2 cores takes 12
_CHILD = "from cambrian.engine.artifact.quarantine import prove_here; prove_here()"


def prove(path: Path, manifest: Manifest) -> None:
    """Loads an artefact's portable program in a child process and runs its probe there.

    Raises:
      DamagedArtifact: naming the file, if the child refuses it, crashes, or exceeds its limits.
      ParityError: if the probe's outputs are too far from the reference.
    """
    available, group = psutil.virtual_memory().available, control_group_bytes()
    request = {"path": str(path.absolute()), "memory_bytes": available if group is None else min(available, group)}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD],
            input=json.dumps(request | {"manifest": manifest.to_json()}).encode(),
            capture_output=True,
            timeout=TIME_LIMIT_S,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        raise DamagedArtifact(_refusal(path, f"no result in {TIME_LIMIT_S:g} s")) from None
    except OSError as error:
        raise DamagedArtifact(_refusal(path, f"no process: {one_line(error)}")) from error
    verdict = _verdict(path, child)
    if "parity" in verdict:
        raise ParityError(verdict["error"], Parity(*verdict["parity"]))
    if "error" in verdict:
        raise DamagedArtifact(verdict["error"])


def _verdict(path: Path, child: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    if child.returncode < 0:
        return {"error": _refusal(path, f"an end by {signal.Signals(-child.returncode).name}")}
    try:
        return json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = next(reversed(child.stderr.decode(errors="replace").split("\n")[:-1]), "")
        return {"error": _refusal(path, f"exit code {child.returncode} {reason[:300]}".strip())}


def _refusal(path: Path, got: str) -> str:
    return f"{path / PORTABLE} must load in a process of its own, as it is not signed with this user's key, got {got}"


def prove_here() -> None:
    """Does in the child what `prove` asks for on standard input, and prints the verdict."""
    request = json.load(sys.stdin)
    _limit(resource.RLIMIT_DATA, request["memory_bytes"])
    _limit(resource.RLIMIT_CPU, int(TIME_LIMIT_S) * (os.cpu_count() or 1))  # if the parent is killed
    _limit(resource.RLIMIT_CORE, 0)
    path, manifest = Path(request["path"]), Manifest.from_json(request["manifest"])
    verdict = {}
    try:
        _load(path, manifest)
    except ParityError as error:
        verdict = {"error": str(error), "parity": [error.parity.max_relative_error, error.parity.top1_agreement]}
    except DamagedArtifact as error:
        verdict = {"error": str(error)}
    except Exception as error:
        verdict = {"error": _refusal(path, one_line(error))}
    print(json.dumps(verdict), flush=True)
    os._exit(0)  # what a hostile program left behind may crash the interpreter's own exit


def _load(path: Path, manifest: Manifest) -> None:
    exported = read_portable(path, manifest, is_signed=False)
    if manifest.platform != "cpu":
        return
    jax.config.update("jax_num_cpu_devices", manifest.mesh.num_devices)
    mesh, _ = rebuild_mesh(manifest, None)
    params = read_params(path, manifest, mesh)
    compiled = compile_portable(path, manifest, exported, mesh)
    check_probe(path, manifest, rebuilt_executable(manifest, mesh, "portable", compiled, params))


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
