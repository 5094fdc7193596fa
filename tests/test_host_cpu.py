"""What is read off the host's CPU."""

import pytest

from cambrian.sharding.host import computes_bfloat16, cpu


@pytest.mark.parametrize(
    ("model", "features", "computes"),
    [
        ("AMD EPYC", {"avx512_bf16"}, True),
        ("AMD EPYC", {"avx512f"}, False),
        ("Intel(R) Xeon(R) Processor", {"avx512_bf16"}, False),  # slower than float32
        ("Intel(R) Xeon(R) Platinum 8488C", {"avx512_bf16", "amx_bf16"}, True),
        ("Neoverse-N1", set(), False),
    ],
)
def test_bfloat16_is_native_where_it_is_faster_than_float32(monkeypatch, model, features, computes):
    monkeypatch.setattr(cpu, "cpu_model", lambda: model)
    monkeypatch.setattr(cpu, "cpu_features", lambda: frozenset(features))
    assert computes_bfloat16("cpu") == computes
    assert computes_bfloat16("gpu")
