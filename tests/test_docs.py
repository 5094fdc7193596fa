"""README and docs name every flag, and docs/report.md every key of every report."""

import dataclasses
import re

from absl import flags

from cambrian.commands.batch.report import BatchReport
from cambrian.commands.flags import define_flags, own_flags
from cambrian.commands.loadgen.results import LoadGenResult
from cambrian.commands.report import Report
from cambrian.commands.train.report import TrainingReport
from cambrian.engine.runtime.metrics import Summary
from command import ROOT


def test_every_flag_is_named():
    text = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    values = flags.FlagValues()
    define_flags(values)
    named = set(re.findall(r"--(?:no)?(\w+)", text))
    assert own_flags(values).keys() <= named


def test_every_report_key_is_named():
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text()))
    for keys in (Report, Summary, BatchReport, TrainingReport):
        assert {field.name for field in dataclasses.fields(keys)} - {"summary"} <= named
    assert {field.name for field in dataclasses.fields(LoadGenResult)} <= named
