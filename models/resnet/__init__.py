"""ResNets: architecture, variables, and the Flax model."""
