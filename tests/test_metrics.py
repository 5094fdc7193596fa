"""Times and top-k against values worked out by hand or by another implementation."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from cambrian.commands.accuracy.top_k import top_k
from cambrian.engine.runtime.metrics import BatchTimes, Summary, Timeline


def timeline_of(*batches: BatchTimes) -> Timeline:
    timeline = Timeline()
    for batch in batches:
        timeline.add(batch)
    return timeline


def test_summary_of_overlapping_batches():
    # Launches cover 2…5 (overlapping) and 8…9: 4 s of device time. Added in order of completion, not of start.
    timeline = timeline_of(
        BatchTimes(10, 0.5, 1.5, 3.0, 5.0, 5.5, 5.75),
        BatchTimes(10, 0.0, 1.0, 2.0, 4.0, 4.5, 6.0),
        BatchTimes(4, 6.0, 7.0, 8.0, 9.0, 9.0, 10.0),
    )
    summary = timeline.summary()
    expected = Summary(
        wall_ms=10_000.0,
        images_per_second=2.4,
        device_images_per_second=6.0,
        latency_ms_p50=3500.0,  # of 2000, 3500, 4000
        latency_ms_p90=3900.0,
        latency_ms_p99=3990.0,
        decode_ms=3000.0,
        host_to_device_ms=3500.0,
        execute_ms=5000.0,
        device_to_host_ms=1000.0,
        postprocess_ms=2750.0,
    )
    assert dataclasses.asdict(summary) == pytest.approx(dataclasses.asdict(expected))


def test_a_launch_within_another_adds_no_device_time():
    timeline = timeline_of(
        BatchTimes(6, 0.0, 0.0, 1.0, 4.0, 4.0, 4.0),
        BatchTimes(6, 0.0, 0.0, 2.0, 3.0, 3.0, 3.0),
        BatchTimes(6, 0.0, 0.0, 3.5, 5.5, 5.5, 5.5),
    )
    assert timeline.summary().device_images_per_second == 4.0


def test_summary_of_nothing_is_none():
    assert set(dataclasses.asdict(Timeline().summary()).values()) == {None}


def test_batches_without_samples_have_no_latency_and_no_device_time():
    empty = BatchTimes(0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    summary = timeline_of(empty).summary()
    assert (summary.wall_ms, summary.images_per_second, summary.decode_ms) == (1000.0, 0.0, 1000.0)
    assert summary.device_images_per_second is None and summary.latency_ms_p50 is None
    full = BatchTimes(8, 0.0, 1.0, 1.0, 2.0, 3.0, 4.0)
    summary = timeline_of(empty, full).summary()
    assert summary.latency_ms_p50 == summary.latency_ms_p99 == 2000.0
    assert summary.device_images_per_second == 8.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("num_classes", [4, 5, 6, 1000])
def test_top_k_agrees_with_a_stable_sort(dtype, num_classes):
    # Few distinct values, so that most are ties.
    logits = np.random.default_rng(0).integers(-3, 4, (16, num_classes)).astype(dtype)
    indices, probabilities = top_k(logits, 5)
    expected = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(indices, expected)
    exponentials = np.exp(logits.astype(np.float64))
    softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, np.take_along_axis(softmax, expected, axis=1), rtol=1e-5)


def test_top_k_of_extreme_logits():
    indices, probabilities = top_k(np.array([[1e30, -np.inf, 1e30, -np.inf]], np.float32), 4)
    assert indices.tolist() == [[0, 2, 1, 3]]
    assert probabilities.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    indices, probabilities = top_k(np.array([[0, np.inf, -np.inf], [1, np.nan, 2]], np.float32), 2)
    np.testing.assert_array_equal(indices, [[1, 0], [1, 2]])
    np.testing.assert_array_equal(probabilities, [[1, 0], [np.nan, np.nan]])


def test_top_k_of_no_samples():
    indices, probabilities = top_k(np.empty((0, 10), np.float32), 5)
    assert indices.shape == probabilities.shape == (0, 5)
