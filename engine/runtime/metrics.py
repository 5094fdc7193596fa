"""Times of a run's batches, summarised under the report's keys."""

import dataclasses
import threading
import time
from collections.abc import Iterable

import numpy as np

PHASES = ("decode", "host_to_device", "execute", "device_to_host", "postprocess")  # of a batch, in a host thread


@dataclasses.dataclass(frozen=True, slots=True)
class BatchTimes:
    """When one batch left each phase, in seconds of `time.perf_counter`; an empty batch is not launched."""

    num_samples: int
    handed_over: float  # to a host thread
    decoded: float
    launched: float  # the inputs are on the devices
    ready: float
    fetched: float  # the outputs are on the host
    finished: float  # postprocessed
    card: int = 0  # that computed it


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """A run's times under the report's keys; None where nothing was measured.

    Attributes:
      wall_ms: time from the first batch handed over to the last result.
      images_per_second: samples over `wall_ms`.
      device_images_per_second: samples over the time in which at least one launch was in flight.
      latency_ms_p50, latency_ms_p90, latency_ms_p99: percentiles, by linear interpolation, of the batches' times from
        decoded to outputs on the host.
      decode_ms, host_to_device_ms, execute_ms, device_to_host_ms, postprocess_ms: sums over the batches, which
        exceed `wall_ms` with several threads; a launch executes from enqueued to ready, after the launches before it.
    """

    wall_ms: float | None = None
    images_per_second: float | None = None
    device_images_per_second: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    decode_ms: float | None = None
    host_to_device_ms: float | None = None
    execute_ms: float | None = None
    device_to_host_ms: float | None = None
    postprocess_ms: float | None = None


class Timeline:
    """Collects the times of a run's batches from several threads."""

    def __init__(self):
        self._batches: list[BatchTimes] = []
        self._lock = threading.Lock()
        self._num_whole, self._whole_at = 0, 0.0

    def add(self, batch: BatchTimes) -> None:
        with self._lock:
            self._batches.append(batch)

    def add_whole(self, num_samples: int) -> None:
        """Adds that a batch, of which `add` gets this process's part, is finished now in all processes."""
        self._num_whole, self._whole_at = self._num_whole + num_samples, time.perf_counter()

    def of_card(self, card: int) -> "Timeline":
        """Returns a timeline of the batches that a card computed."""
        timeline = Timeline()
        with self._lock:
            timeline._batches = [batch for batch in self._batches if batch.num_samples and batch.card == card]
        return timeline

    @property
    def num_samples(self) -> int:
        """Number of samples in the batches added so far."""
        with self._lock:
            return sum(batch.num_samples for batch in self._batches)

    def summary(self) -> Summary:
        """Returns the summary of the batches added so far."""
        with self._lock:
            batches = list(self._batches)
        if not batches:
            return Summary()
        wall = (self._whole_at or max(b.finished for b in batches)) - min(b.handed_over for b in batches)
        num_samples = self._num_whole or sum(b.num_samples for b in batches)
        sums = {
            "decode_ms": 1e3 * sum(b.decoded - b.handed_over for b in batches),
            "host_to_device_ms": 1e3 * sum(b.launched - b.decoded for b in batches),
            "execute_ms": 1e3 * sum(b.ready - b.launched for b in batches),
            "device_to_host_ms": 1e3 * sum(b.fetched - b.ready for b in batches),
            "postprocess_ms": 1e3 * sum(b.finished - b.fetched for b in batches),
        }
        launched = [b for b in batches if b.num_samples]
        if not launched:
            return Summary(wall_ms=1e3 * wall, images_per_second=0.0, **sums)
        latencies_ms = [1e3 * (b.fetched - b.decoded) for b in launched]
        p50, p90, p99 = np.percentile(latencies_ms, (50, 90, 99)).tolist()
        return Summary(
            wall_ms=1e3 * wall,
            images_per_second=num_samples / wall,
            device_images_per_second=num_samples / _union_length((b.launched, b.ready) for b in launched),
            latency_ms_p50=p50,
            latency_ms_p90=p90,
            latency_ms_p99=p99,
            **sums,
        )


def _union_length(intervals: Iterable[tuple[float, float]]) -> float:
    total, covered_until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, covered_until))
        covered_until = max(covered_until, end)
    return total
