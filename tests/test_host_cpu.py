"""What is read off the host's CPU."""

import pytest

from cambrian.sharding.host import computes_bfloat16, cpu


@pytest.mark.parametrize(
    ("vendor", "features", "computes"),
    [
        ("AuthenticAMD", {"avx512_bf16"}, True),
        ("AuthenticAMD", {"avx512f"}, False),
        ("GenuineIntel", {"avx512_bf16"}, False),  # slower than float32
        ("GenuineIntel", {"avx512_bf16", "amx_bf16"}, True),
        ("0x41", set(), False),
    ],
)
def test_bfloat16_is_native_where_it_is_faster_than_float32(monkeypatch, vendor, features, computes):
    monkeypatch.setattr(cpu, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(cpu, "cpu_features", lambda: frozenset(features))
    assert computes_bfloat16("cpu") == computes
    assert computes_bfloat16("gpu")
