"""The host of a mesh: devices, cores, memory, and every process-wide setting that Cambrian changes."""

from cambrian.sharding.host.compilation_cache import without_compilation_cache as without_compilation_cache
from cambrian.sharding.host.core_reservation import reserve_cores as reserve_cores
from cambrian.sharding.host.core_sharing import launches_at_once as launches_at_once, planned_as as planned_as
from cambrian.sharding.host.cpu import (
    cache_share_bytes as cache_share_bytes,
    computes_bfloat16 as computes_bfloat16,
    cpu_caches_kib as cpu_caches_kib,
    cpu_features as cpu_features,
    cpu_model as cpu_model,
    cpu_vendor as cpu_vendor,
    host_cores as host_cores,
)
from cambrian.sharding.host.cpu_latency import low_cpu_latency as low_cpu_latency
from cambrian.sharding.host.devices import (
    PLATFORMS as PLATFORMS,
    acquire_devices as acquire_devices,
    cpu_threads as cpu_threads,
    default_threads as default_threads,
    join_mesh as join_mesh,
    launches_run_side_by_side as launches_run_side_by_side,
    max_virtual_devices as max_virtual_devices,
    shares_mesh as shares_mesh,
)
from cambrian.sharding.host.huge_pages import restart_with_huge_pages as restart_with_huge_pages
from cambrian.sharding.host.malloc import (
    keep_freed_memory as keep_freed_memory,
    return_freed_memory as return_freed_memory,
)
from cambrian.sharding.host.paths import cache_dir as cache_dir, config_dir as config_dir, user_folder as user_folder
from cambrian.sharding.host.process_limits import oom_kills as oom_kills
from cambrian.sharding.host.settings import (
    SETTINGS as SETTINGS,
    HostSettings as HostSettings,
    child_environment as child_environment,
    host as host,
)
from cambrian.sharding.host.shares import Share as Share, divide_host as divide_host
