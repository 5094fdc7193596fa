"""Compiles a program, or its portable form, to machine code in this process."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.export import Exported
from jax.sharding import Mesh

from cambrian.engine.runtime.batch import put
from cambrian.engine.runtime.executable import Analysis, Executable
from cambrian.sharding import (
    Program,
    Specs,
    TensorSpec,
    abstract,
    aligned,
    compile_apply,
    compiler_options_of,
    shardings,
)
from cambrian.sharding.host import without_compilation_cache


def compile_program(program: Program) -> Executable:
    """Traces and compiles a program, and moves its parameters to the devices."""
    compiled = compile_apply(program)
    return Executable(
        name=program.name,
        kind="online",
        compiled=compiled,
        params=put_params(program.params, program.param_specs, program.mesh),
        param_specs=program.param_specs,
        input_spec=program.input_spec,
        output_spec=program.output_spec,
        mesh=program.mesh,
        analysis=Analysis.of(compiled),
        plan=program.plan.to_json() if program.plan else {},
        metadata=program.metadata,
        notes=program.notes,
        program=program,
    )


def compile_exported(
    exported: Exported,
    param_specs: Sequence[TensorSpec],
    input_spec: Specs,
    output_spec: Specs,
    mesh: Mesh,
    custom_calls: Sequence[str] = (),
) -> jax.stages.Compiled:
    """Compiles the portable form of a program, which makes these custom calls, for `mesh`."""
    jitted = jax.jit(exported.call, out_shardings=shardings(output_spec, mesh))
    lowered = jitted.lower(abstract(list(param_specs), mesh), abstract(input_spec, mesh))
    with without_compilation_cache():
        return lowered.compile(compiler_options_of(custom_calls))


def put_params(params: Sequence[np.ndarray], specs: Sequence[TensorSpec], mesh: Mesh) -> list[jax.Array]:
    """Moves parameters from the host to the devices of `mesh`.

    Virtual CPU devices that hold the same values share one buffer, unless a dimension other than the first is sharded.
    """
    return put([aligned(array) for array in params], list(specs), mesh)
