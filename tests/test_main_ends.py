"""How the command ends when something else does: output cut off, disk full, killed, a platform that isn't there."""

import os

import pytest

from command import ROOT, Command, read_predictions, read_report, write_images
from waiting import num_lines, settle

BATCH_SIZE = 8


@pytest.fixture(scope="module")
def flags(command):
    """Flags of a run whose executable is in the cache."""
    small = [*command.small_flags(), "--mesh", "1x2", "--batch_size", str(BATCH_SIZE), "--data", "synthetic"]
    command.run(*small, "--num_images", 8)
    return small


def start_after(command: Command, statement: str, *flags: object):
    """Runs the command in a process that has executed `statement` first."""
    script = command.home / "first.py"
    script.write_text(
        f"import os, resource, sys\n{statement}\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return command(*flags, script=(script, ROOT / "main.py"))


@pytest.mark.slow
def test_help_lists_the_flags_and_succeeds(command):
    outcome = command("--help")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout.index("  --mode ") < outcome.stdout.index("  --mesh* ") < outcome.stdout.index("  --repeats ")


IGNORED = """
import sys, time
from cambrian.commands import cli

class Ignored:
    def __del__(self):
        raise KeyboardInterrupt

sys.unraisablehook = cli._interrupt_again
try:
    Ignored()
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
WHILE_IMPORTING = """
import os, signal, sys
from cambrian.commands.start import start

class Interrupted:
    def __del__(self):  # where Python ignores exceptions
        os.kill(os.getpid(), signal.SIGINT)

    def find_spec(self, name, *_):
        if name == "cambrian.commands.cli":
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Interrupted())
start()
"""


@pytest.mark.slow
def test_an_interrupt_that_python_ignores_comes_again(command):
    (command.home / "ignored.py").write_text(IGNORED)
    assert command(script=(command.home / "ignored.py",)).stdout == "interrupted\n"


@pytest.mark.slow
def test_an_interrupt_while_the_libraries_are_imported_is_one_line(command):
    (command.home / "importing.py").write_text(WHILE_IMPORTING)
    outcome = command("--help", script=(command.home / "importing.py",))
    assert (outcome.exit_code, outcome.stderr) == (130, "error: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("--helpfull",)])
def test_a_full_standard_output_is_an_error(command, arguments):
    with open("/dev/full", "w") as full:
        outcome = command(*arguments, stdout=full)
    assert (outcome.exit_code, outcome.error) == (1, "OSError: [Errno 28] No space left on device: 'standard output'")


@pytest.mark.slow
def test_a_closed_pipe_is_an_error_after_the_results_are_written(command, flags):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        outcome = command(*flags, "--num_images", 8, "--output_dir", "piped", stdout=pipe)
    assert (outcome.exit_code, outcome.error) == (1, "BrokenPipeError: [Errno 32] Broken pipe: 'standard output'")
    assert read_report(command.home / "piped")["status"] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stream_is_refused(command, descriptor):
    outcome = start_after(command, f"os.close({descriptor})", "--mesh", "1x1")
    message = "error: standard output and standard error must be open, got a closed one\n"
    assert (outcome.exit_code, outcome.stdout + outcome.stderr) == (2, message)


LARGE_PICTURES = """
import PIL.Image
from cambrian.commands.cli import cli

PIL.Image.MAX_IMAGE_PIXELS = 40  # of which Pillow warns above
cli()
"""


@pytest.mark.slow
def test_what_pillow_warns_of_is_read_without_a_word(command, flags):
    write_images(command.home / "large", ["a.png", "b.png"])
    run = command.run(*flags, "--data", "large", script=("-c", LARGE_PICTURES))
    assert run.report["num_images"] == 2


@pytest.mark.slow
def test_a_full_disk_names_the_file_and_keeps_whole_batches(command, flags):
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"  # bytes a file
    outcome = start_after(command, limit, *flags, "--num_images", 4000, "--output_dir", "full")
    assert outcome.exit_code == 1
    assert outcome.error == "OSError: [Errno 27] File too large: 'full/predictions.csv'"
    report = read_report(command.home / "full")
    assert (report["status"], report["failure_reason"]) == ("failed", outcome.error)
    rows = read_predictions(command.home / "full")
    assert report["num_images"] == len(rows) > 0 and len(rows) % BATCH_SIZE == 0
    assert [row["image"] for row in rows] == [f"synthetic_{index:06d}" for index in range(len(rows))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mib", "reason"),
    [
        (256, "expected at least 512 MiB of address space (ulimit -v), got 256 MiB"),
        (800, "MiB of address space for 2 devices, got "),
    ],
)
def test_too_small_an_address_space_is_refused_before_anything_aborts(command, flags, mib, reason):
    limit = f"resource.setrlimit(resource.RLIMIT_AS, ({mib * 2**20}, {mib * 2**20}))"
    outcome = start_after(command, limit, *flags, "--output_dir", f"limited-{mib}")
    assert outcome.exit_code == 1
    assert outcome.error.startswith("OutOfMemory: ") and reason in outcome.error
    report = command.home / f"limited-{mib}" / "report.json"
    assert not report.exists() or read_report(report.parent)["status"] == "out_of_memory"


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["nosuch", "cuda"])
def test_a_platform_that_is_not_there(command, flags, platforms):
    environment = command.environment | {"JAX_PLATFORMS": platforms}
    outcome = command(*flags, "--output_dir", "platform", env=environment)
    assert outcome.exit_code == 2
    assert outcome.error.startswith(
        f"expected a platform that JAX can start here, one of cpu, got JAX_PLATFORMS={platforms}: "
    )


@pytest.mark.slow
def test_a_killed_run_leaves_running_and_nothing_of_the_run_before(command, flags):
    output = command.home / "killed"
    output.mkdir()
    old = ("report.json", "predictions.csv", "classes.csv", "confusion.png", "metrics.csv", "curves_float32.png")
    for name in old:
        (output / name).write_text('{"flags": {}, "status": "ok"}')
    predictions = output / "predictions.csv"
    with command.start(*flags, "--num_images", 10**7, "--output_dir", output) as process:
        try:
            settle(lambda: num_lines(predictions) > 3, 60)
            assert read_report(output)["status"] == "running"
        finally:
            process.kill()
    report = read_report(output)
    assert (report["status"], report["num_images"], report["flags"]["num_images"]) == ("running", None, 10**7)
    assert {path.name for path in output.iterdir()} == {"report.json", "predictions.csv", "curves_float32.png"}
    assert predictions.read_bytes().endswith(b"\n")
    rows = read_predictions(output)
    assert [row["image"] for row in rows] == [f"synthetic_{index:06d}" for index in range(len(rows))]
