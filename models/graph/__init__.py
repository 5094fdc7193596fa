"""Any JAX function as a graph: traced, folded, fused, and computed by the fastest measured lowerings."""
