"""The parts of `gpu.py`, each a module with `measure(...)`, which yields rows of JSON-compatible facts by name."""
