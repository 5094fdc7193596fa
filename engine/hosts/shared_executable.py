"""An executable whose mesh runs over several processes, as one of them has it."""

import dataclasses
from typing import Self

from cambrian.engine.hosts.group import Group
from cambrian.engine.runtime.executable import Executable
from cambrian.engine.runtime.parity import Parity
from cambrian.sharding import MODEL_AXIS


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SharedExecutable(Executable):
    """An executable with the group of processes that share its mesh.

    Attributes:
      parity: of the rows of all processes.
      group: the processes.
    """

    group: Group = dataclasses.field(repr=False)

    @classmethod
    def of(cls, executable: Executable, group: Group) -> Self:
        """Waits until the probe has passed in all processes.

        Raises:
          ProcessRefused, ProcessEnded: if another process has ended, because of its probe or otherwise.
        """
        assert executable.parity is not None
        errors, agreements = zip(*group.exchange(dataclasses.astuple(executable.parity)), strict=True)
        agreement = None if None in agreements else sum(agreements) / len(agreements)
        fields = {field.name: getattr(executable, field.name) for field in dataclasses.fields(Executable)}
        return cls(**fields | {"parity": Parity(max(errors), agreement)}, group=group)

    @property
    def answers(self) -> bool:
        """Whether this process is the first of those that have the same rows of each launch."""
        parts = self.mesh.shape[MODEL_AXIS] // self.mesh.local_mesh.shape[MODEL_AXIS]
        return self.group.process_id % parts == 0
