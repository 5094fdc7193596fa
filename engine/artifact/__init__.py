"""The artefact: a compiled program as a directory, saved, verified, and loaded without its model's code or weights."""
