"""ResNets: architecture, variables, the Flax model, and batch norms folded for inference."""
