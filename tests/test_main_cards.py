"""Runs of the command on several cards: built once, as in one process, and ended with it."""

import os
import signal

import psutil
import pytest

from cambrian.sharding.host import host_cores
from command import CommandHere, read_predictions, read_report
from waiting import num_lines, settle

pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_cores() < 2, reason="one core has no two cards")]
CARDS = ("--cards", "2", "--threads", "4")


@pytest.fixture(scope="module")
def flags(command):
    # No cost table is of a card's share of the cores, and a measured plan may be one that can't be serialized.
    return [*command.small_flags(), "--calibrate_s", 0, "--mesh", "1x2", "--batch_size", "8", "--data", "synthetic"]


@pytest.fixture(scope="module")
def run(command, flags):
    """The first run, which builds; the last batch has 5 images."""
    return command.run(*flags, *CARDS, "--num_images", 93)


def test_two_cards_build_once_and_predict_as_one_process_does(command, flags, run):
    assert run.outcome.stderr.count("building the executable") == 1
    report = run.report
    assert (report["status"], report["cards"], report["threads"], report["mesh"]) == ("ok", 2, 4, "1x2")
    assert (report["device_count"], report["num_images"], report["executable"]) == (2, 93, "native")
    assert sum(card["num_images"] for card in report["each_card"]) == 93
    assert all(card["images_per_second"] > 0 and card["ended"] is None for card in report["each_card"])
    assert report["build_ms"] > 0 and 0 < report["parity_max_relative_error"] < 1e-4
    assert report["peak_host_memory_bytes"] > 3 * 100 * 2**20  # of three processes with JAX
    assert "2 cards, mesh 1x2" in run.outcome.stdout
    alone = CommandHere(command.home).run(*flags, "--num_images", 93)
    assert [row["image"] for row in run.predictions] == [row["image"] for row in alone.predictions]
    assert [row["predicted"] for row in run.predictions] == [row["predicted"] for row in alone.predictions]


def test_compile_makes_the_artefact_of_a_card(command, flags, run):
    outcome = command(*flags[:-2], *CARDS, "--mode", "compile")
    assert outcome.exit_code == 0 and "building" not in outcome.stderr
    received = command.run("--artifact", outcome.stdout.strip(), "--data", "synthetic", "--num_images", 93, *CARDS)
    assert received.report["executable"] == "native" and received.predictions == run.predictions


def test_a_card_that_is_killed_costs_a_note_and_an_interrupt_ends_all(command, flags, run):
    output = command.home / "output"
    predictions = output / "predictions.csv"

    with command.start(*flags, *CARDS, "--num_images", 10**7, "--output_dir", output) as process:
        try:
            settle(lambda: num_lines(predictions) > 100, timeout_s=60)
            cards = psutil.Process(process.pid).children()
            assert len(cards) == 2
            os.kill(cards[0].pid, signal.SIGKILL)
            before = num_lines(predictions)
            settle(lambda: num_lines(predictions) > before + 1000)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in errors
    assert not any(card.is_running() for card in cards)
    report = read_report(output)
    (ended,) = (index for index, card in enumerate(report["each_card"]) if card["ended"])
    assert f"card {ended} was killed by SIGKILL: its batches went to the others" in report["notes"]
    rows = read_predictions(output)
    assert [row["image"] for row in rows] == [f"synthetic_{index:06d}" for index in range(report["num_images"])]
    assert sum(card["num_images"] for card in report["each_card"]) >= len(rows) > 1000


def test_the_end_of_all_cards_is_one_error(command, flags, run):
    output = command.home / "all-ended"
    with command.start(*flags, *CARDS, "--num_images", 10**7, "--output_dir", output) as process:
        try:
            settle(lambda: num_lines(output / "predictions.csv") > 100, timeout_s=60)
            for card in psutil.Process(process.pid).children():
                card.kill()
            _, errors = process.communicate(timeout=10)
        finally:
            process.kill()
    report = read_report(output)
    assert process.returncode == 1 and errors.endswith(f"error: {report['failure_reason']}\n")
    assert report["failure_reason"].startswith("CardsEnded: ") and "went to the others" not in errors
    assert report["num_images"] == len(read_predictions(output)) > 0
