"""A small network, and the programs among which a build of it chooses on a machine with caches of any size."""

import importlib

import jax

from cambrian.sharding import MeshShape, make_mesh
from graph_cases import conv, draw

SAMPLES, BYTES = 12, 4 * 8 * 8 * (4 + 8)  # of the largest layer's input and output, for a sample
PARAMS = {"first": draw(3, 3, 4, 8), "second": draw(3, 3, 8, 4)}


def network(params, images):
    return conv(jax.nn.relu(conv(images, params["first"])), params["second"]).mean(axis=(1, 2))


def set_cache_share(monkeypatch, share):
    """Sets the bytes of a core's share of the last-level cache; None for no such cache."""
    module = importlib.import_module("cambrian.models.graph.micro_batch")
    monkeypatch.setattr(module, "cache_share_bytes", lambda: share)


def built(monkeypatch, function, mesh="1x1"):
    """The programs among which a build chooses, and the chosen one."""
    module = importlib.import_module("cambrian.models.graph.build_program")
    seen = []

    def choose(programs, stock, **settings):
        seen.extend(programs)
        return fastest(programs, stock, **settings)

    fastest = module.fastest_program
    monkeypatch.setattr(module, "fastest_program", choose)
    shape = MeshShape.parse(mesh)
    inputs = jax.ShapeDtypeStruct((SAMPLES * shape.num_devices, 8, 8, 4), "float32")
    program = module.build_program(function, PARAMS, inputs, make_mesh(shape, jax.devices()), name="mine")
    sizes = [{layer.micro_batch for _, layer in each.plan.layers} for each in seen]
    return seen, sizes, program
