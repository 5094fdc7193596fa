"""How long the rest of a sweep will take, by what its trials have taken so far."""

import statistics
from collections.abc import Sequence

from cambrian.commands.sweep.result import BUILD, MEASURE, OK, Result
from cambrian.commands.sweep.search import Stage


def time_left_s(stage: Stage, results: Sequence[Result]) -> float | None:
    """Seconds: of each pending trial what its configuration has taken before, else the mean; None before the first."""
    took: dict[object, list[float]] = {}
    for result in results:
        if result.trial.stage == MEASURE and result.status == OK:
            took.setdefault(result.trial.cell, []).append(result.elapsed_s)
    if not took:
        return None
    mean_s = statistics.mean(seconds for several in took.values() for seconds in several)
    pending_s = sum(statistics.mean(took.get(trial.cell, [mean_s])) for trial in stage.pending)
    builds = [result for result in results if result.trial.stage == BUILD]
    built = {result.trial.cell.executable for result in builds}
    unbuilt = {trial.cell.executable for trial in stage.pending} - built if builds else set()
    build_s = statistics.mean(result.elapsed_s for result in builds) if builds else 0.0
    return pending_s + stage.later * mean_s + len(unbuilt) * build_s
