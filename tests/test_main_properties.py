"""Properties: any text as any flag, and any JSON as a report, make a configuration or a UsageError."""

import contextlib
import json

import pytest
from absl import flags
from hypothesis import given, strategies as st

from cambrian.commands.configuration import RANGES, Configuration, parse_bytes
from cambrian.commands.flags import Flags, define_flags, help_text, read_configuration
from cambrian.sharding import MeshShape, UsageError
from flag_values import parse
from strategies import BOUNDED, JSON, TEXTS

_VALUES = flags.FlagValues()
define_flags(_VALUES)
NAMES = [flag.name for flag in _VALUES.flags_by_module_dict()["cambrian.commands.flags"]]


def check(found: Flags) -> None:
    """A configuration that is made is within all ranges."""
    if found.is_sweep:
        return
    configuration = read_configuration(found)
    assert isinstance(configuration, Configuration) and isinstance(configuration.mesh, MeshShape)
    for name, (low, high) in RANGES.items():
        assert found[name] is None or low <= found[name] <= high


@BOUNDED
@given(name=st.sampled_from(NAMES), text=TEXTS)
def test_any_text_for_any_flag(name, text):
    with contextlib.suppress(UsageError, flags.Error, ValueError if _VALUES[name].boolean else UsageError):
        check(parse(f"--{name}={text}"))


@BOUNDED
@given(reported=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_any_flags_in_a_report(tmp_path, reported):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"flags": reported}))
    with contextlib.suppress(UsageError):
        check(parse("--config", path))


def test_a_number_of_another_mode_is_within_its_range(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"flags": {"workers": 0}}))
    with pytest.raises(UsageError, match="workers must be from 1 to"):
        parse("--config", path)


@BOUNDED
@given(content=st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_file_as_a_report(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        check(parse("--config", path))


@BOUNDED
@given(text=TEXTS)
def test_a_size_is_within_bounds_or_refused(text):
    with contextlib.suppress(UsageError):
        assert 0 <= parse_bytes(text) <= 2**50


@pytest.mark.parametrize("name", NAMES)
def test_help_names_every_flag_once(name):
    listed = [line.split()[0].removeprefix("--").removeprefix("[no]").rstrip("*") for line in help_lines()]
    assert listed.count(name) == 1


def help_lines() -> list[str]:
    return [line for line in help_text(_VALUES).splitlines() if line.startswith("  --")]
