"""Benchmark scripts; the docstring of each states its command and what it compares."""
