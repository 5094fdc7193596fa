"""README and docs name every flag, docs/report.md every key of every report; commands and links are valid."""

import dataclasses
import re
import shlex
from importlib.util import find_spec

import pytest
from absl import flags

from cambrian.commands.batch.report import BatchReport
from cambrian.commands.flags import define_flags, own_flags, read_configuration
from cambrian.commands.loadgen.results import LoadGenResult
from cambrian.commands.report import Report
from cambrian.commands.sweep.grid import Grid
from cambrian.commands.train.report import TrainingReport
from cambrian.engine.runtime.metrics import Summary
from command import ROOT
from flag_values import parse

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# What stands for something of the reader's → a value that it may have.
FOR_EXAMPLE = {
    "MESH": "1x2",
    "BATCH": "8",
    "PARTITION": "auto",
    "PRECISION": "float32",
    "IMAGES": "9",
    "N": "2",
    "CARDS": "1",
    "THREADS": "2",
    "head.py": "resnet101_cifar10",
    "small.py": "resnet101_cifar10",
    "runs/…/report.json": "resnet101_cifar10",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_valid(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = document.read_text().replace("\\\n", " ")
    for written in re.findall(r"^    python main\.py (.*)$", text, re.MULTILINE):
        if written == "--help" or ("--mode loadgen" in written and find_spec("mlperf_loadgen") is None):
            continue
        found = parse(*(FOR_EXAMPLE.get(word, word) for word in shlex.split(written, comments=True)))
        for cell in Grid.of(found.axes).cells:
            read_configuration(found, cell.flags)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(document):
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_flag_is_named():
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    values = flags.FlagValues()
    define_flags(values)
    named = set(re.findall(r"--(?:no)?(\w+)", text))
    assert own_flags(values).keys() <= named


def test_every_report_key_is_named():
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "report.md").read_text()))
    for keys in (Report, Summary, BatchReport, TrainingReport):
        assert {field.name for field in dataclasses.fields(keys)} - {"summary"} <= named
    assert {field.name for field in dataclasses.fields(LoadGenResult)} <= named
