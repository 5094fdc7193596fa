"""Keeps JAX's persistent compilation cache out of a compilation."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from cambrian.sharding.host.settings import host

_DIRECTORY, _ENABLED = "jax_compilation_cache_dir", "jax_enable_compilation_cache"


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Disables the persistent compilation cache inside this context, where permitted.

    Machine code that XLA:CPU loads from that cache lacks functions once it is serialized again. An artefact does the
    cache's work.
    """
    options = jax.config.values
    enabled = options[_DIRECTORY] is not None and options[_ENABLED]
    if not enabled or "compilation_cache" not in host.permitted:
        yield
        return
    host.record("compilation_cache", f"{_ENABLED} = False while an executable is compiled")
    jax.config.update(_ENABLED, False)
    reset_cache()  # JAX reads the option at its first compilation only, or after this
    try:
        yield
    finally:
        jax.config.update(_ENABLED, True)
        reset_cache()
