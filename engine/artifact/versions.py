"""Versions of the software that a result depends on."""

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Returns package → version, with the versions of Python and the operating system."""
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"python": platform.python_version(), "platform": platform.platform(), **packages}
