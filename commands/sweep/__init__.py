"""Sweeps: many configurations, each in a process of its own, resumable, with a ranked answer."""
