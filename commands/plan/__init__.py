"""`--mode plan`: the plan of an executable with predicted and measured times."""
