"""From a model to its program, and the digests of what a program depends on."""
