"""What programs of all models carry: facts of their plan and of the classifier, and pictures for the probe."""

import dataclasses
from typing import Any

import numpy as np

from cambrian.engine.runtime.parity import NUM_PROBE_SAMPLES
from cambrian.sharding import Preprocessing, Program, mesh_shape


def with_plan_facts(program: Program, partition: str) -> Program:
    """The program with what reports and `--mode plan` show of the plan that `partition` led to."""
    facts: dict[str, Any] = {"partition": partition}
    if program.plan is not None:
        facts["layer_costs"] = [dataclasses.asdict(cost) for cost in program.plan.costs]
        if program.network is not None:
            mesh = mesh_shape(program.mesh)
            facts["intra_sample_flops_fraction"] = program.plan.intra_sample_flops_fraction(program.network, mesh)
    return dataclasses.replace(program, metadata={**program.metadata, **facts})


def of_classifier(
    program: Program, preprocessing: Preprocessing, labels: tuple[str, ...], trained: bool, **facts: Any
) -> Program:
    """The program with what runs of a classifier need, and pictures of the packaged sample, as it reads them.

    The probe's logits of noise would be less telling.
    """
    from cambrian.commands.images.sample import open_sample  # Pillow, which a start without a build can do without

    sample = open_sample("test")
    chosen = np.random.default_rng(0).permutation(len(sample))[:NUM_PROBE_SAMPLES]
    facts |= {"labels": list(labels), "preprocessing": preprocessing.to_json(), "trained": trained}
    return dataclasses.replace(
        program,
        probe_samples=np.stack([sample.read(index, preprocessing).pixels for index in chosen.tolist()]),
        metadata={**program.metadata, **facts},
    )
