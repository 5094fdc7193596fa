"""Batch inference by Ray itself: kills of a worker and of a node, and the pipeline of docs/scale.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cambrian
from command import ROOT, Command, read_report
from waiting import settle

pytest.importorskip("ray", reason="needs the extra ray")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.slow
WITH_WARNINGS = ("-W", "default")  # Ray's own are no errors


@pytest.fixture
def command(tmp_path) -> Command:
    command = Command(tmp_path)
    command.environment |= {"RAY_AUTH_MODE": "disabled", "JAX_PLATFORMS": "cpu"}
    return command


def test_kills_of_a_worker_and_of_a_node_lose_nothing_and_double_nothing(command, tmp_path):
    kernel = np.random.default_rng(0).standard_normal((192, 10), np.float32)
    size = cambrian.Preprocessing((8, 8), (8, 8))
    classifier = cambrian.Classifier(lambda params, images: images.reshape(-1, 192) @ params, kernel, size)
    cambrian.compile(classifier, mesh="1x1", batch_size=4, platform="cpu", name="linear").save(tmp_path / "artifact")
    names = [f"{index:03}.png" for index in range(300)]
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(1000, 1000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / names[0])  # takes a while to decode
    for name in names[1:]:
        os.link(tmp_path / "images" / names[0], tmp_path / "images" / name)

    script = [sys.executable, Path(__file__).parent / "ray_cluster.py"]
    with subprocess.Popen(
        script, env=command.environment, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert cluster.stdin is not None and cluster.stdout is not None
        try:
            address = cluster.stdout.readline().strip()
            flags = ("--mode", "batch", "--artifact", "artifact", "--data", "images", "--output_dir", "out")
            job = command.start(
                *flags, "--workers", "2", "--ray_address", address, script=(*WITH_WARNINGS, ROOT / "main.py")
            )
            for least, victim in ((1, "worker"), (5, "node")):
                settle(lambda: job.poll() is not None or num_parts(tmp_path / "out") >= least, 100)  # noqa: B023
                cluster.stdin.write(f"{victim}\n")
                cluster.stdin.flush()
                assert cluster.stdout.readline().startswith("killed ")
            assert job.poll() is None, "the job ended before the kills"
            _, stderr = job.communicate(timeout=200)
            assert job.returncode == 0, stderr
        finally:
            cluster.stdin.close()
    rows = sorted(pq.read_table(tmp_path / "out" / "rows").to_pylist(), key=lambda row: row["path"])
    assert [row["path"] for row in rows] == names and not any(row["error"] for row in rows)
    assert (report := read_report(tmp_path / "out"))["num_images"] == 300
    assert any("processes died and had to be replaced" in note for note in report["notes"])


def num_parts(output_dir: Path) -> int:
    return len(list((output_dir / "rows").glob("part-*")))


def test_the_documented_pipeline_prints_what_the_document_says(command, tmp_path):
    text = (ROOT / "docs" / "scale.md").read_text().partition("### In your own pipeline")[2]
    ((script, expected),) = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "script.py").write_text(script)
    outcome = command(script=(*WITH_WARNINGS, tmp_path / "script.py"))
    assert outcome.exit_code == 0 and expected in outcome.stdout, outcome.stderr
