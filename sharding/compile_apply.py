"""Compiles the function of a program, once in a process: a build runs several programs and returns the fastest."""

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cambrian.sharding.host.compilation_cache import without_compilation_cache
from cambrian.sharding.host.devices import launches_run_side_by_side
from cambrian.sharding.program import Program, shardings

_LEVEL = "xla_backend_optimization_level"
_LEVEL_OF_CUSTOM_CALLS = "1"
_SCHEDULER = "xla_cpu_scheduler_type"
_MEMORY_OPTIMIZED = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
# A program's `apply` → mesh and specs, and what it compiled to for them; programs that differ in notes share it.
_compiled: weakref.WeakKeyDictionary[Callable[..., Any], tuple[Any, jax.stages.Compiled]] = weakref.WeakKeyDictionary()


def compile_apply(program: Program) -> jax.stages.Compiled:
    """Traces and compiles the program's `apply`, without moving its parameters."""
    specs = program.mesh, program.param_specs, program.input_spec, program.output_spec
    known, compiled = _compiled.get(program.apply, (None, None))
    if compiled is None or known != specs:
        lowered = jit_program(program).lower(*program.abstract_arguments())
        with without_compilation_cache():
            compiled = lowered.compile(compiler_options_of(program.custom_calls))
        _compiled[program.apply] = specs, compiled
    return compiled


def compiler_options_of(custom_calls: Sequence[str]) -> dict[str, str | bool]:
    """XLA's options for a program with these custom calls. Those in XLA_FLAGS stay.

    A program with custom calls is compiled at each start, as XLA can't serialize it. On an AMD EPYC (Zen 4), it is as
    fast at LLVM's level 1 as at 3, the default, which takes 1.2 to 1.5 times as long to compile.

    Where launches run side by side, operations are computed in an order that saves memory. In the default one many
    could be computed at once, which jax 0.12 leaves to XLA's only thread: there, launches would take turns.
    """
    options: dict[str, str | bool] = {_LEVEL: _LEVEL_OF_CUSTOM_CALLS} if custom_calls else {}
    if launches_run_side_by_side():
        options[_SCHEDULER] = _MEMORY_OPTIMIZED
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if name not in flags}


def jit_program(program: Program):
    """Returns the program's `apply` under `jax.jit`, with its output sharding."""
    return jax.jit(program.apply, out_shardings=shardings(program.output_spec, program.mesh))
