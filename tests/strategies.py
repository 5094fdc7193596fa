"""Hypothesis strategies for what a user or a damaged file may hold."""

from hypothesis import HealthCheck, settings, strategies as st

BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([10**12, 10**400, 2**63, -1, 0, 1]))
TEXTS = st.one_of(st.text(max_size=400), NUMBERS.map(str), st.from_regex(r"\d{1,30}x\d{1,30}", fullmatch=True))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Content with up to four bytes replaced, inserted or removed, and possibly truncated."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        data[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])
