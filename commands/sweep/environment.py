"""All that the results of a sweep depend on, apart from its command."""

import os

import psutil

from cambrian.engine.artifact.versions import versions
from cambrian.sharding.host import cpu_model


def environment(source: str) -> dict[str, str]:
    """Facts in words: processor, memory, versions, and `source`, a digest of the code that builds programs."""
    return {
        "processor": cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **versions(),
        "source": source[:16],
    }
