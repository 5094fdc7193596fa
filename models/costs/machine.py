"""What costs depend on besides the layers: the machine, and which cost tables are of it."""

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jax
import jaxlib

from cambrian.sharding.host import cache_dir, cpu_caches_kib, cpu_features, cpu_vendor, default_threads, host_cores

# Instruction sets by which oneDNN and XLA choose their kernels → how the kernel lists them.
_INSTRUCTION_SETS = {
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "avx2": "avx2",
    "avx512_bf16": "avx512_bf16",
    "avx512_vnni": "avx512_vnni",
    "avx512f": "avx512f",
    "neon": "asimd",
    "sve": "sve",
}


SHIPPED = Path(__file__).parent / "shipped"
_FORM = 3  # of a table's lines and of what they time: those of another form aren't read, and have a file of their own
_TUNED = re.compile(r'^{"tuned": "(\w+)"}$', re.MULTILINE)  # the line of a table's file that says so


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine: what decides the costs of layers. The name of the CPU doesn't: virtual machines hide it.

    Attributes:
      platform: cpu, gpu or tpu.
      vendor: of the CPU; on other platforms the kind of the device.
      jax: version of jax, which brings XLA and oneDNN.
      instruction_sets: of the CPU, by which oneDNN and XLA choose their kernels; sorted.
      cores: number of cores of the CPU that XLA uses.
      caches_kib: KiB of a core's caches for data, from the first level on; empty where they aren't known.
    """

    platform: str
    vendor: str
    jax: str
    instruction_sets: tuple[str, ...] = ()
    cores: int = 0
    caches_kib: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Machine":
        """The inverse of `dataclasses.asdict`, from lists for tuples."""
        lists = {name: tuple(fields[name]) for name in ("instruction_sets", "caches_kib")}
        return cls(**{**fields, **lists})

    def distance(self, other: "Machine") -> tuple[int, ...]:
        """Orders machines by how much their costs are expected to differ from those of this one."""
        differing = len(set(self.instruction_sets) ^ set(other.instruction_sets))
        return differing, self.vendor != other.vendor, abs(self.cores - other.cores), self != other


def this_machine(platform: str) -> Machine:
    """Returns the machine that this process runs on."""
    if platform != "cpu":
        return Machine(platform, jax.devices(platform)[0].device_kind, jax.__version__)
    features = cpu_features()
    known = tuple(name for name, listed in _INSTRUCTION_SETS.items() if listed in features)
    cores = min(host_cores(), default_threads())
    return Machine(platform, cpu_vendor(), jax.__version__, known, cores, cpu_caches_kib())


def own_table_path(platform: str) -> Path:
    """Returns the path of the table measured on this machine, in `costs` in the user's cache folder."""
    facts = dataclasses.asdict(this_machine(platform)) | {"jaxlib": jaxlib.__version__, "form": _FORM}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return cache_dir() / "costs" / f"{platform}-jax-{jax.__version__}-{digest}.jsonl"


def tuned_part(platform: str) -> str:
    """Returns the text of this machine's own table up to where `--tune` last ended; builds append what they measure."""
    text = text_of(own_table_path(platform))
    return text[: max((found.end() for found in _TUNED.finditer(text)), default=0)]


def tuned_precisions(platform: str) -> set[str]:
    """Returns the precisions in which this machine's own table, or a shipped one of this machine, is complete."""
    machine = this_machine(platform)
    shipped = [path for path in SHIPPED.glob("*.jsonl") if _machine_of(path) == machine]
    return {precision for path in (own_table_path(platform), *shipped) for precision in _TUNED.findall(text_of(path))}


def text_of(path: Path) -> str:
    """Returns the text of a file of costs, damaged as it may be; nothing if it isn't there or can't be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _machine_of(path: Path) -> Machine:
    with path.open() as file:
        return Machine.from_json(json.loads(file.readline())["machine"])
