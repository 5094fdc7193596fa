"""Where a network is computed: meshes, devices, partitions, plans and programs."""

from sharding.alignment import ALIGNMENT as ALIGNMENT, aligned as aligned
from sharding.choice import PARTITIONS as PARTITIONS
from sharding.collectives import (
    halo_exchange as halo_exchange,
    sum_over_model_axis as sum_over_model_axis,
    transition as transition,
)
from sharding.cost_tables import machine_of as machine_of, own_table_path as own_table_path
from sharding.costs import Costs as Costs, Option as Option
from sharding.cpu import (
    computes_bfloat16 as computes_bfloat16,
    cpu_features as cpu_features,
    cpu_model as cpu_model,
    host_cores as host_cores,
)
from sharding.devices import (
    PLATFORMS as PLATFORMS,
    acquire_devices as acquire_devices,
    cpu_threads as cpu_threads,
    launches_run_side_by_side as launches_run_side_by_side,
    max_virtual_devices as max_virtual_devices,
)
from sharding.errors import OutOfMemory as OutOfMemory, UsageError as UsageError
from sharding.function_program import program_from_function as program_from_function
from sharding.host_threads import (
    launches_at_once as launches_at_once,
    planned_as as planned_as,
)
from sharding.layer import Kind as Kind, LayerSpec as LayerSpec, Network as Network
from sharding.mesh import (
    DATA_AXIS as DATA_AXIS,
    MODEL_AXIS as MODEL_AXIS,
    MeshShape as MeshShape,
    make_mesh as make_mesh,
    mesh_shape as mesh_shape,
)
from sharding.partition import (
    Layout as Layout,
    Partition as Partition,
    layouts as layouts,
    local_samples as local_samples,
    refusal as refusal,
)
from sharding.plan import LayerPlan as LayerPlan, Plan as Plan
from sharding.plan_costs import LayerCost as LayerCost, plan_milliseconds as plan_milliseconds
from sharding.planner import choose_plan as choose_plan
from sharding.program import Program as Program, TensorSpec as TensorSpec
from sharding.rules import Rules as Rules, match_rules as match_rules
from sharding.timing import time_launches as time_launches
