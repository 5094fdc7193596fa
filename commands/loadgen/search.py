"""Searches the highest rate of scenario Server that LoadGen finds VALID.

LoadGen's own search asks of a rate that its 99th percentile is within the bound. Its verdict also wants 99% confidence
in that (early stopping), so it finds the rate of its own search INVALID. Here the verdict decides.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cambrian.commands.loadgen.results import LoadGenResult, read_result
from cambrian.commands.loadgen.settings import LoadGenSettings
from cambrian.commands.output import LOADGEN_LOGS
from cambrian.sharding.host.files import replace_file

_PRECISION = 0.03
_REACH = 4  # times the throughput, above which no rate is tried, and share of it, below which none is


def find_peak(
    run: Callable[[], None], settings: LoadGenSettings, test_settings: Any, throughput: float, folder: Path
) -> LoadGenResult:
    """Doubles or halves the rate until it is bounded, then bisects.

    Args:
      run: runs a test with `test_settings`, whose logs are written to `folder`.
      test_settings: LoadGen's, with the first rate.
      throughput: of the executable, in samples per second.

    Returns:
      The result at the highest VALID rate, whose logs stay in `folder`; an INVALID one if no rate is VALID.
    """
    rate = test_settings.server_target_qps
    low, high, best, logs = 0.0, _REACH * max(rate, throughput), None, {}
    while high > (1 + _PRECISION) * low:
        test_settings.server_target_qps = rate
        run()
        result = read_result(folder, settings)
        latency = f"99th percentile {result.latency_ms_p99:.1f} ms"
        print(f"{rate:.4g} samples/s: {result.result}, {latency}", file=sys.stderr, flush=True)
        if result.result == "VALID":
            low, best, logs = rate, result, {name: (folder / name).read_bytes() for name in LOADGEN_LOGS}
        else:
            high = rate
            if best is None and rate <= throughput / _REACH:
                return result
        rate = min(2 * low or high, (low + high) / 2)
    assert best is not None  # `low` has left 0
    for name, content in logs.items():
        replace_file(folder / name, content)
    return best
