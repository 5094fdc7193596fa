"""Chooses what the user leaves open, precision and batch size, by the predicted times of plans."""

import dataclasses
import math
from collections.abc import Sequence

from cambrian.models.costs.layer_case import case_of, dtype_of, lowerings_of
from cambrian.models.costs.layer_options import Outlook
from cambrian.models.costs.table import CostTable
from cambrian.models.execution.make_plan import make_plan
from cambrian.sharding import LayerSpec, MeshShape, Network, OutOfMemory, Partition, Plan, total_ms
from cambrian.sharding.host import planned_as

# A smaller batch has a shorter latency: it is chosen if it is predicted to take at most this much longer for an image.
_AS_FAST = 1.03
_LONGEST_MS = 6000.0  # of a launch whose batch size is chosen


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A precision, and a global number of samples per launch."""

    precision: str
    batch_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plans:
    """The plans of a network on a mesh for each setting, by one cost table.

    Attributes:
      network: layers to plan.
      mesh: sizes of the mesh axes.
      table: cost table.
      partition: as `choose_plan` takes it.
      launches_at_once: number of launches that compute concurrently on a single device, which holds the working memory
        of each.
      memory_limit_bytes: memory limit of a device; None for no limit.
    """

    network: Network
    mesh: MeshShape
    table: CostTable
    partition: str = "auto"
    launches_at_once: int = 1
    memory_limit_bytes: int | None = None
    _plans: dict[tuple[Setting, Outlook], Plan] = dataclasses.field(default_factory=dict, repr=False)

    def with_table(self, table: CostTable) -> "Plans":
        """Returns the plans by another cost table."""
        return dataclasses.replace(self, table=table, _plans={})

    def planned(self, setting: Setting) -> tuple[MeshShape, int]:
        """Returns the mesh and the batch size that stand for all launches at once, see `planned_as`."""
        return planned_as(self.mesh, setting.batch_size, self.launches_at_once)

    def plan(self, setting: Setting, outlook: Outlook = Outlook.EXPECTED) -> Plan:
        """Returns the plan of a setting; `outlook` and errors as `make_plan`."""
        if (setting, outlook) not in self._plans:
            self._plans[setting, outlook] = make_plan(
                self.network,
                *self.planned(setting),
                self.table.platform,
                setting.precision,
                self.partition,
                launches_at_once=self.launches_at_once,
                memory_limit_bytes=self.memory_limit_bytes,
                table=self.table,
                outlook=outlook,
            )
        return self._plans[setting, outlook]

    def ms_per_sample(self, setting: Setting, outlook: Outlook = Outlook.EXPECTED) -> float:
        """Returns the predicted milliseconds for a sample; infinite if no plan fits the memory limit."""
        try:
            return total_ms(self.plan(setting, outlook).costs) / self.planned(setting)[1]
        except OutOfMemory:
            return math.inf

    def knows_layers(self, precision: str) -> bool:
        """Whether the table, unless it is empty, has times of something alike each layer with weights."""

        def is_known(layer: LayerSpec) -> bool:
            dtype = dtype_of(layer, precision)
            lowerings = lowerings_of(layer, self.table.platform, dtype)
            cases = (case_of(layer, Partition.WHOLE, lowering, 1, dtype, self.mesh) for lowering in lowerings)
            return any(map(self.table.knows, cases))

        return not self.table.times or all(is_known(layer) for layer in self.network if layer.has_weights)

    def is_short(self, setting: Setting, outlook: Outlook = Outlook.EXPECTED) -> bool:
        """Whether a launch fits the memory limit and is predicted to take a few seconds at most."""
        return self.ms_per_sample(setting, outlook) * self.planned(setting)[1] <= _LONGEST_MS

    def largest(
        self, precisions: Sequence[str], batch_sizes: Sequence[int], outlook: Outlook = Outlook.EXPECTED
    ) -> Setting:
        """Returns the fastest precision with the largest batch that fits and that a launch computes in a few seconds.

        Args:
          precisions: precisions to choose from. Those in which nothing was measured on this machine aren't considered;
            if nothing was measured in any, the first one is taken.
          batch_sizes: batch sizes to choose from.
          outlook: how long what wasn't measured takes in a launch.
        """
        considered = [precision for precision in precisions if self.table.has_measured(precision)] or precisions[:1]
        for batch_size in sorted(batch_sizes, reverse=True):
            setting = min((Setting(precision, batch_size) for precision in considered), key=self.ms_per_sample)
            if self.is_short(setting, outlook):
                break
        return setting

    def fastest(self, precisions: Sequence[str], batch_sizes: Sequence[int]) -> Setting:
        """Returns the fastest precision with the smallest batch that is about as fast as any larger one.

        Args:
          precisions: as `largest` takes them; they are compared at the largest batch size.
          batch_sizes: batch sizes to choose from, tried from the largest on until one is slower.
        """
        chosen = self.largest(precisions, batch_sizes)
        least = self.ms_per_sample(chosen)
        for batch_size in sorted((size for size in batch_sizes if size < chosen.batch_size), reverse=True):
            candidate = dataclasses.replace(chosen, batch_size=batch_size)
            if self.ms_per_sample(candidate) > _AS_FAST * least:
                break
            chosen, least = candidate, min(least, self.ms_per_sample(candidate))
        return chosen
