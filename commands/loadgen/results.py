"""LoadGen's verdict, read from its own logs."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.commands.loadgen.settings import LoadGenSettings
from cambrian.commands.output import LOADGEN_LOGS

_, _DETAIL, _ACCURACY, _ = LOADGEN_LOGS
_PREFIX = ":::MLLOG "
_NO_NUMBER = re.compile(r'(?<="value": )-?(nan|inf)\b')  # as C++ writes them, such as the rate of one query
_RATES = {
    "Offline": "result_samples_per_second",
    "Server": "result_scheduled_samples_per_sec",
    "SingleStream": "result_qps_with_loadgen_overhead",
}


@dataclasses.dataclass(frozen=True, slots=True)
class LoadGenResult:
    """What LoadGen says about a performance test.

    Attributes:
      result: VALID or INVALID.
      reasons: why it is INVALID, in LoadGen's words; empty if VALID.
      num_queries: queries of the test.
      target_qps: samples per second that LoadGen expected or sent.
      samples_per_second: Offline: samples over the test's duration. Server: samples per second as scheduled, None of
        one query. SingleStream: queries over the test's duration. MultiStream: samples over the mean time of a query.
      latency_ms_p50, latency_ms_p90, latency_ms_p99: percentiles of the time from a query's scheduled time to its
        answer; None in scenario Offline, which has one query.
    """

    result: str
    reasons: tuple[str, ...]
    num_queries: int
    target_qps: float
    samples_per_second: float | None
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    latency_ms_p99: float | None


def read_result(folder: Path, settings: LoadGenSettings) -> LoadGenResult:
    """Reads the result of a performance test from LoadGen's detailed log.

    Raises:
      RuntimeError: if LoadGen has written none, or a part.
    """
    values, errors = _read_details(folder)
    if "result_validity" not in values:
        raise RuntimeError(f"LoadGen must write its result to {folder / _DETAIL}: {'; '.join(errors) or 'got none'}")
    scenario, valid = settings.scenario, values["result_validity"] == "VALID"
    samples_per_query = settings.samples_per_query
    if scenario in _RATES:
        rate = values[_RATES[scenario]]
    else:
        rate = 1e9 * samples_per_query / values["result_mean_query_latency_ns"]
    per_query = "per_query_" if scenario == "MultiStream" else ""
    percentiles = {
        f"latency_ms_p{percent}": None
        if scenario == "Offline"
        else 1e-6 * values[f"result_{percent}.00_percentile_{per_query}latency_ns"]
        for percent in (50, 90, 99)
    }
    return LoadGenResult(
        result=values["result_validity"],
        reasons=() if valid else _reasons(values, errors),
        num_queries=values["result_query_count"],
        target_qps=values["effective_target_qps"],
        samples_per_second=rate,
        **percentiles,
    )


def read_classes(folder: Path) -> dict[int, int]:
    """Reads the predicted class of each image, by its index in the data set, from LoadGen's accuracy log.

    Raises:
      RuntimeError: if LoadGen hasn't written it whole.
    """
    entries = _parsed((folder / _ACCURACY).read_text(), folder / _ACCURACY)
    return {entry["qsl_idx"]: int(np.frombuffer(bytes.fromhex(entry["data"]), np.int64)[0]) for entry in entries}


def _read_details(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The last value of each key, and the errors."""
    values: dict[str, Any] = {}
    errors: list[str] = []
    for line in (folder / _DETAIL).read_text().splitlines():
        if line.startswith(_PREFIX):
            entry = _parsed(_NO_NUMBER.sub("null", line.removeprefix(_PREFIX)), folder / _DETAIL)
            values[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"]:
                errors.append(str(entry["value"]))
    return values, errors


def _parsed(text: str, path: Path) -> Any:
    """LoadGen says nothing of a log that it can't write, as on a full disk."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RuntimeError(f"LoadGen must find room on the disk for all of {path}, got a part: {error}") from None


def _reasons(values: Mapping[str, Any], errors: list[str]) -> tuple[str, ...]:
    reasons = [values.get("result_invalid_reason", ""), *errors]
    if not values.get("early_stopping_met", True):
        reasons.append(f"Early stopping not satisfied: {values['early_stopping_result'].replace('*', '')}")
    return tuple(dict.fromkeys(" ".join(reason.split()) for reason in reasons if reason.strip()))
