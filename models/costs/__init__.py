"""What layers cost: measured times by case, their files, and the options that the planner chooses from."""
