"""Named configurations, data only."""
