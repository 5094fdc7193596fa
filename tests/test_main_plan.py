"""`--mode plan` by the command: the plan shown is the one that the executable and the report carry."""

import dataclasses
import re

import pytest

from cambrian.commands.plan import plan
from cambrian.engine.artifact.manifest import MANIFEST, read_manifest
from cambrian.engine.artifact.signing import load_key
from cambrian.sharding import LayerCost, time_launches
from command import CommandHere

COST = dataclasses.asdict(LayerCost("fc", 2.0, 0.0, 2**18, 0))
LAYER = {"partition": "whole", "lowering": "matmul", "micro_batch": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> CommandHere:
    return CommandHere(tmp_path_factory.mktemp("plan"))


@pytest.fixture(autouse=True)
def few_launches(monkeypatch):
    """Times five launches, instead of those of five seconds."""
    monkeypatch.setattr(plan, "time_launches", lambda *arguments, **_: time_launches(*arguments, least=5, seconds=0))


@pytest.mark.slow
def test_the_plan_is_shown_and_drawn_and_is_that_of_the_run(command):
    flags = (*command.small_flags(), "--mesh", "2x2", "--batch_size", 4)
    outcome = command("--mode", "plan", *flags, "--output_dir", command.home / "plan")
    assert outcome.exit_code == 0, outcome.stderr
    report = command.run(*flags, "--num_images", 4).report
    assert report["build_ms"] is None  # the executable is the one that mode plan built
    lines = {line.split()[0]: line.split() for line in outcome.stdout.splitlines() if line.strip()}
    for name, layer in report["plan"].items():
        assert lines[name][1:4] == [layer["partition"], layer["precision"], layer["lowering"]]
    assert re.search(
        r"a launch: predicted [\d.]+ ms, measured [\d.]+ ms \(predicted / measured \d+\.\d\d\)", outcome.stdout
    )
    assert sorted(path.name for path in (command.home / "plan").iterdir()) == ["plan.png", "plan.svg"]


@pytest.mark.slow
def test_an_artifact_s_plan_is_shown_without_its_model(command):
    built = command("--mode", "compile", *command.small_flags(), "--mesh", "2x2", "--batch_size", 4)
    artifact = built.stdout.strip()
    outcome = command("--mode", "plan", "--artifact", artifact, "--output_dir", command.home / "received")
    assert outcome.exit_code == 0 and "resnet6, mesh 2x2 on cpu, batch 4, float32" in outcome.stdout
    outcome = command("--mode", "plan", "--artifact", artifact, "--tune")
    assert (outcome.exit_code, outcome.error) == (2, f"an artifact has its plan: leave --tune out, got {artifact}")


def test_tuning_is_refused_outside_mode_plan(command):
    outcome = command("--tune")
    assert (outcome.exit_code, outcome.error) == (2, "--tune belongs to mode plan, got mode run")


@pytest.mark.parametrize(
    "forged",
    [
        {"metadata": {"layer_costs": [{"name": "fc"}]}},
        {"metadata": {"layer_costs": [COST | {"name": "conv"}]}},
        {"metadata": {"layer_costs": [COST | {"compute_ms": "long"}]}},
        {"plan": {"fc": LAYER | {"partition": "columns"}}},
        {"plan": {"fc": {}}},
        {"name": "\ud800"},
        {"plan": {"fc": LAYER | {"lowering": "\ud800"}}},
    ],
)
def test_a_plan_that_an_artifact_forges_is_refused_in_one_line(artifact, key, command, forged):
    manifest, _ = read_manifest(artifact, None)
    changed = {"plan": {"fc": LAYER}, "metadata": {"layer_costs": [COST]}} | forged
    (artifact / MANIFEST).write_bytes(dataclasses.replace(manifest, **changed).signed(load_key(key)))
    outcome = command("--mode", "plan", "--artifact", artifact, "--signing_key", key)
    requirement = "must be a manifest with a plan and the costs of its layers: "
    assert outcome.exit_code == 2 and outcome.error.startswith(f"{artifact / MANIFEST} {requirement}")
