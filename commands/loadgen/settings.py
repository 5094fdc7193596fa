"""Which test LoadGen runs: scenario, mode and limits, in LoadGen's own terms."""

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Mapping
from typing import Any

from cambrian.sharding import MeshShape, UsageError

SCENARIOS = ("Offline", "Server", "SingleStream", "MultiStream")
TEST_MODES = ("PerformanceOnly", "AccuracyOnly", "SubmissionRun", "FindPeakPerformance")
LOADGEN_FLAGS = ("scenario", "test_mode", "target_qps", "min_duration_s", "min_query_count", "mlperf_rules")
DECIDED_BY_RULES = ("min_duration_s", "min_query_count", "max_latency_ms")
MOST_LOADED = 1024  # images in memory during a performance test, as in MLPerf's image classification

_BENCHMARK = "resnet50"  # MLPerf's image classification, in LoadGen's mlperf.conf
_MULTI_STREAM_SAMPLES = 8
_DELAY_SHARE = 0.1  # of the latency bound, that a query of scenario Server may wait for others to fill its batch
_OFFLINE_MARGIN = 1.2  # a test that is shorter than it must be is INVALID
_STREAM_MARGIN = 5  # times as fast as measured may a query be: a test that runs out of generated queries is INVALID
_FIRST_RATE_SHARE = 1 / 2  # of the executable's throughput, with which a search for the highest rate starts
_CONFIDENCE = 0.99  # of LoadGen's early stopping
# Queries that may exceed the latency in a test of the default length. Of the streams, LoadGen wants one; in scenario
# Server, one of 662 would mean a rate at which 99.85% are within the bound.
_EXCEEDING = {"Server": 5}


@dataclasses.dataclass(frozen=True, slots=True)
class LoadGenSettings:
    """A test of LoadGen.

    Attributes:
      scenario: Offline (all samples at once), Server (queries of one sample, as a Poisson process), SingleStream (one
        sample after another) or MultiStream (eight samples after eight samples).
      test_mode: PerformanceOnly, AccuracyOnly, SubmissionRun (both), or FindPeakPerformance, which searches the highest
        rate of scenario Server that LoadGen finds VALID.
      target_qps: samples per second to expect (Offline) or to send (Server; in a search, the first rate). None: chosen
        by measuring.
      max_latency_ms: bound on the 99th percentile of latency in scenario Server. None: LoadGen's, 100 ms.
      min_query_count: least number of queries of a test. None: as many as LoadGen's early stopping wants.
      mlperf_rules: whether MLPerf's settings for image classification decide, with its durations, counts and bound.

    Raises:
      UsageError: if the values contradict each other, or LoadGen isn't installed.
    """

    scenario: str
    test_mode: str
    target_qps: float | None
    max_latency_ms: float | None
    min_duration_s: float
    min_query_count: int | None
    mlperf_rules: bool

    def __post_init__(self):
        if importlib.util.find_spec("mlperf_loadgen") is None:
            raise UsageError(
                "mode loadgen needs the extra mlperf (pip install 'cambrian[mlperf]'), got no module mlperf_loadgen"
            )
        searches = self.test_mode == "FindPeakPerformance"
        if self.target_qps is not None and not (0 < self.target_qps < math.inf):
            raise UsageError(f"target_qps must be above 0 samples per second, got {self.target_qps:g}")
        if searches and self.scenario != "Server":
            raise UsageError(f"test_mode FindPeakPerformance searches in scenario Server, got {self.scenario}")
        if self.scenario == "Server" and self.target_qps is None and not (searches or self.test_mode == "AccuracyOnly"):
            raise UsageError(
                "scenario Server needs --target_qps, or --test_mode FindPeakPerformance to find the highest, got none"
            )
        if self.target_qps is not None and self.scenario not in ("Server", "Offline"):
            raise UsageError(f"target_qps belongs to scenarios Server and Offline, got {self.scenario}")

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> "LoadGenSettings":
        """The test that flags describe."""
        return cls(**{field.name: flags[field.name] for field in dataclasses.fields(cls)})

    @property
    def samples_per_query(self) -> int:
        """Samples that LoadGen asks for at once, except in scenario Offline."""
        return _MULTI_STREAM_SAMPLES if self.scenario == "MultiStream" else 1

    def batch_size(self, mesh: MeshShape) -> int:
        """The batch size for this scenario; 0 for the default one."""
        if self.scenario == "Offline":
            return 0
        return mesh.data * -(-self.samples_per_query // mesh.data)

    def test_settings(self, batch_size: int, launch_s: float) -> Any:
        """Makes LoadGen's settings.

        Args:
          launch_s: seconds a batch of `batch_size` takes, at the executable's throughput.

        Returns:
          An `mlperf_loadgen.TestSettings`.
        """
        import mlperf_loadgen as loadgen  # pyright: ignore[reportMissingImports]

        settings = loadgen.TestSettings()
        settings.FromConfig("", _BENCHMARK, self.scenario, 0)  # 0: mlperf.conf, which LoadGen contains
        settings.scenario = getattr(loadgen.TestScenario, self.scenario)
        mode = "PerformanceOnly" if self.test_mode == "FindPeakPerformance" else self.test_mode
        settings.mode = getattr(loadgen.TestMode, mode)
        if not self.mlperf_rules:
            settings.min_duration_ms = round(1e3 * self.min_duration_s)
            settings.min_query_count = self.min_query_count or self._queries_for_early_stopping(settings)
            settings.performance_sample_count_override = 0
            default_ns = loadgen.TestSettings().server_target_latency_ns
            settings.server_target_latency_ns = (
                default_ns if self.max_latency_ms is None else round(1e6 * self.max_latency_ms)
            )
        query_ns = 1e9 * launch_s * -(-self.samples_per_query // batch_size) / _STREAM_MARGIN
        settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = query_ns
        throughput = batch_size / launch_s
        settings.offline_expected_qps = self.target_qps or _OFFLINE_MARGIN * throughput
        first = throughput * (_FIRST_RATE_SHARE if self.test_mode == "FindPeakPerformance" else 1)
        settings.server_target_qps = self.target_qps or first
        return settings

    def _queries_for_early_stopping(self, test_settings: Any) -> int:
        """The least number of queries of a valid test if some of them may exceed the percentile's latency.

        If the latency weren't that percentile's, so few of so many queries would exceed it with a probability below
        1 - `_CONFIDENCE` (MLPerf's inference rules, appendix on early stopping).
        """
        if self.scenario == "Offline":
            return 1  # which has as many samples as the duration takes
        scenario = {"SingleStream": "single_stream", "MultiStream": "multi_stream", "Server": "server"}[self.scenario]
        share = getattr(test_settings, f"{scenario}_target_latency_percentile")
        exceeding = range(_EXCEEDING.get(self.scenario, 1) + 1)

        def probability(count: int) -> float:
            return sum(math.comb(count, k) * (1 - share) ** k * share ** (count - k) for k in exceeding)

        return next(count for count in itertools.count(1) if probability(count) < 1 - _CONFIDENCE)

    def max_delay_s(self, test_settings: Any) -> float:
        """Seconds that a query may wait for others to fill its batch."""
        return _DELAY_SHARE * 1e-9 * test_settings.server_target_latency_ns if self.scenario == "Server" else 0.0

    def num_samples(self, test_settings: Any) -> int:
        """The least number of samples of a performance test, all of which LoadGen generates before it begins."""
        if self.scenario == "Offline":
            rate = test_settings.offline_expected_qps
        elif self.scenario == "Server":
            rate = test_settings.server_target_qps
        else:
            rate = 1e9 * self.samples_per_query / test_settings.single_stream_expected_latency_ns
        least = test_settings.min_query_count * self.samples_per_query
        return max(least, math.ceil(1e-3 * test_settings.min_duration_ms * rate))

    def num_images_needed(self, test_settings: Any) -> int:
        """The number of distinct images that LoadGen loads for a query or, by the rules, for a test."""
        return max(self.samples_per_query, test_settings.performance_sample_count_override)
