"""Named configurations; data only."""
