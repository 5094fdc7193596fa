"""The costs of layers: measured times, cost tables and their files, and the planner's options."""
