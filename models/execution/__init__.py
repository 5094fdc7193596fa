"""Turns a network, its weights and a plan into a program."""
