"""Compiles the function of a program, once in a process: a build runs several programs and returns the fastest."""

import weakref
from collections.abc import Callable
from typing import Any

import jax

from cambrian.sharding.host.compilation_cache import without_compilation_cache
from cambrian.sharding.program import Program, shardings

# A program's `apply` → mesh and specs, and what it compiled to for them; programs that differ in notes share it.
_compiled: weakref.WeakKeyDictionary[Callable[..., Any], tuple[Any, jax.stages.Compiled]] = weakref.WeakKeyDictionary()


def compile_apply(program: Program) -> jax.stages.Compiled:
    """Traces and compiles the program's `apply`, without moving its parameters."""
    specs = program.mesh, program.param_specs, program.input_spec, program.output_spec
    known, compiled = _compiled.get(program.apply, (None, None))
    if compiled is None or known != specs:
        lowered = jit_program(program).lower(*program.abstract_arguments())
        with without_compilation_cache():
            compiled = lowered.compile()
        _compiled[program.apply] = specs, compiled
    return compiled


def jit_program(program: Program):
    """Returns the program's `apply` under `jax.jit`, with its output sharding."""
    return jax.jit(program.apply, out_shardings=shardings(program.output_spec, program.mesh))
