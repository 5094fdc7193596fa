"""All passes in order: from a traced function to a graph of fused convolutions and what is left to XLA."""

from cambrian.models.graph.find_convolutions import find_convolutions
from cambrian.models.graph.find_poolings import find_poolings
from cambrian.models.graph.fold_padding import fold_padding
from cambrian.models.graph.fuse import fuse
from cambrian.models.graph.graph import Graph
from cambrian.models.graph.move_views import move_views
from cambrian.models.graph.scan import rewrite_bodies


def optimized(graph: Graph) -> Graph:
    """Applies every pass, also to the bodies of loops; results stay the same up to rounding."""
    graph = rewrite_bodies(graph, optimized)
    for apply_pass in (find_convolutions, move_views, find_poolings, fold_padding, fuse):
        graph = apply_pass(graph)
    return graph
