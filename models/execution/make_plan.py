"""Plans a network for a platform, by the cost table in force."""

import dataclasses

import jax.numpy as jnp

from cambrian.models.costs.files import current_cost_table
from cambrian.models.costs.layer_case import LayerCase, call_of
from cambrian.models.costs.layer_options import Outlook, TableCosts
from cambrian.models.costs.table import CostTable
from cambrian.models.lowerings import LOWERINGS
from cambrian.sharding import MeshShape, Network, Plan, UsageError, choose_plan, total_ms

# An executable with custom calls can't be serialized, so it is compiled at each start. Its plan must be faster by this
# factor to be chosen, and excludes lowerings that are slow to compile.
_WORTH_COMPILING = 1.1
_CUSTOM_CALLS = frozenset(name for name, lowering in LOWERINGS.items() if lowering.custom_call)
_SLOW_TO_COMPILE = frozenset(name for name, lowering in LOWERINGS.items() if lowering.slow_to_compile)


def make_plan(
    network: Network,
    mesh: MeshShape,
    batch_size: int,
    platform: str,
    precision: str = "float32",
    partition: str = "auto",
    *,
    launches_at_once: int = 1,
    memory_limit_bytes: int | None = None,
    table: CostTable | None = None,
    outlook: Outlook = Outlook.EXPECTED,
) -> Plan:
    """Chooses partition, lowering and micro-batch of every layer.

    Args:
      network: layers to plan.
      mesh: sizes of the mesh axes.
      batch_size: global number of samples per launch.
      platform: cpu, gpu or tpu.
      precision: float32, bfloat16, or int8 for a network with quantised layers, whose others are in float32.
      partition: restriction of the partitions, see `sharding.choose_plan`.
      launches_at_once: number of launches whose working memory a device holds, see `TableCosts`.
      memory_limit_bytes: memory limit of a device.
      table: cost table; None for the one in force on this machine.
      outlook: as `TableCosts` takes it.

    Raises:
      UsageError: as `sharding.choose_plan`.
      OutOfMemory: if no plan fits the limit.
    """
    table = table or current_cost_table(platform)

    def best(without: frozenset[str]) -> Plan:
        return choose_plan(
            network,
            mesh,
            batch_size,
            TableCosts(table, mesh, batch_size, precision, without, outlook, launches_at_once),
            partition=partition,
            memory_limit_bytes=memory_limit_bytes,
            element_bytes=jnp.dtype(precision).itemsize,
        )

    if precision == "int8":  # which custom calls alone compute
        return best(without=_SLOW_TO_COMPILE)
    plan = best(without=_CUSTOM_CALLS)
    if not _knows_custom_calls(table):
        return plan
    if (reason := LOWERINGS["onednn"].obstacle(platform)) is not None:
        return dataclasses.replace(plan, notes=(*plan.notes, f"planned without oneDNN: {reason}"))
    compiled = best(without=_SLOW_TO_COMPILE)
    gain = total_ms(plan.costs) / total_ms(compiled.costs)
    return plan if gain < _WORTH_COMPILING else compiled


def is_left_out(lowering: str, table: CostTable) -> bool:
    """Whether a lowering appears in plans without custom calls alone, and the table knows some with them."""
    return lowering in _SLOW_TO_COMPILE and _knows_custom_calls(table)


def _knows_custom_calls(table: CostTable) -> bool:
    return any(isinstance(timed, LayerCase) and timed.lowering in _CUSTOM_CALLS for timed in table.times)


def check_lowerings(network: Network, plan: Plan) -> None:
    """Raises UsageError, naming the layer, if a lowering of `plan` is unknown or doesn't compute its layer."""
    for layer in network:
        lowering = plan[layer.name].lowering
        if lowering not in LOWERINGS:
            raise UsageError(f"lowering of {layer.name} must be one of {', '.join(LOWERINGS)}, got {lowering!r}")
        if layer.has_weights and not LOWERINGS[lowering].supports(call_of(layer)):
            groups = f", {layer.groups} channel groups" if layer.groups > 1 else ""
            raise UsageError(
                f"lowering of {layer.name} must compute a {layer.kernel}×{layer.kernel} convolution with stride "
                f"{layer.stride}{groups}, got {lowering}"
            )
