"""Where a network is computed: meshes, devices, partitions, plans and programs. Imports no other Cambrian package."""

from cambrian.sharding.alignment import ALIGNMENT as ALIGNMENT, aligned as aligned
from cambrian.sharding.collectives import (
    halo_exchange as halo_exchange,
    sum_over_model_axis as sum_over_model_axis,
    transition as transition,
)
from cambrian.sharding.compile_apply import (
    compile_apply as compile_apply,
    compiler_options_of as compiler_options_of,
    jit_program as jit_program,
)
from cambrian.sharding.errors import OutOfMemory as OutOfMemory, UsageError as UsageError
from cambrian.sharding.function_program import program_from_function as program_from_function
from cambrian.sharding.layer import Kind as Kind, LayerSpec as LayerSpec, Network as Network
from cambrian.sharding.mesh import (
    DATA_AXIS as DATA_AXIS,
    MODEL_AXIS as MODEL_AXIS,
    MeshShape as MeshShape,
    crosses_model_axis as crosses_model_axis,
    local_rows as local_rows,
    make_mesh as make_mesh,
    mesh_shape as mesh_shape,
    shape_and_devices as shape_and_devices,
    without_context_mesh as without_context_mesh,
)
from cambrian.sharding.partition import (
    Layout as Layout,
    Partition as Partition,
    layouts as layouts,
    local_samples as local_samples,
    refusal as refusal,
)
from cambrian.sharding.plan import LayerCost as LayerCost, LayerPlan as LayerPlan, Plan as Plan, total_ms as total_ms
from cambrian.sharding.planner import (
    PARTITIONS as PARTITIONS,
    Costs as Costs,
    Option as Option,
    choose_plan as choose_plan,
)
from cambrian.sharding.preprocessing import Preprocessing as Preprocessing
from cambrian.sharding.program import (
    MIXES_SAMPLES as MIXES_SAMPLES,
    Program as Program,
    Specs as Specs,
    TensorSpec as TensorSpec,
    abstract as abstract,
    named_arrays as named_arrays,
    random_array as random_array,
    refusing_derivatives as refusing_derivatives,
    refusing_other_inputs as refusing_other_inputs,
    shardings as shardings,
)
from cambrian.sharding.rules import Rules as Rules
from cambrian.sharding.timing import time_launches as time_launches
