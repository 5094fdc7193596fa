"""Sweeps: many configurations, each in its own process, resumable, with a ranked answer."""

from engine.prediction import Prediction as Prediction
from engine.sweep.command import sweep_command as sweep_command
from engine.sweep.grid import Cell as Cell, Grid as Grid
from engine.sweep.objective import Objective as Objective
from engine.sweep.standing import Standing as Standing, best_group as best_group, rank as rank
from engine.sweep.sweep import Outcome as Outcome, Sweep as Sweep, run_sweep as run_sweep
