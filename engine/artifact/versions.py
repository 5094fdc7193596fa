"""The versions of what a result depends on."""

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Package → version, and Python's and the operating system's."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}
