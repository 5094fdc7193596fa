"""What programs of all models carry: facts of their plan, and pictures for the probe."""

import dataclasses
from typing import Any

import numpy as np

from cambrian.engine.runtime.parity import NUM_PROBE_SAMPLES
from cambrian.sharding import Preprocessing, Program, mesh_shape


def plan_facts(program: Program, partition: str) -> dict[str, Any]:
    """What reports and `--mode plan` show of the plan that `partition` led to."""
    facts: dict[str, Any] = {"partition": partition}
    if program.plan is not None:
        facts["layer_costs"] = [dataclasses.asdict(cost) for cost in program.plan.costs]
        if program.network is not None:
            mesh = mesh_shape(program.mesh)
            facts["intra_sample_flops_fraction"] = program.plan.intra_sample_flops_fraction(program.network, mesh)
    return facts


def probe_pictures(preprocessing: Preprocessing) -> np.ndarray:
    """Pictures of the packaged sample as a model reads them, (N, H, W, 3) uint8; logits of noise are less telling."""
    from cambrian.commands.images.sample import open_sample  # Pillow, which a start without a build can do without

    sample = open_sample("test")
    chosen = np.random.default_rng(0).permutation(len(sample))[:NUM_PROBE_SAMPLES]
    return np.stack([sample.read(index, preprocessing).pixels for index in chosen.tolist()])
