"""From a network, its weights and a plan to a program."""
