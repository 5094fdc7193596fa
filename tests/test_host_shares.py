"""How processes divide the host, on machines that are given here."""

import os

import pytest

from cambrian.sharding import UsageError
from cambrian.sharding.host import shares
from cambrian.sharding.host.shares import Share, divide_host


def machine(tmp_path, nodes: dict[int, str], siblings: dict[str, list[int]]):
    """Writes what Linux says of a machine: cores of each NUMA node, and which cores are threads of one."""
    for node, cores in nodes.items():
        (tmp_path / f"node/node{node}").mkdir(parents=True)
        (tmp_path / f"node/node{node}/cpulist").write_text(f"{cores}\n")
    for threads, cores in siblings.items():
        for core in cores:
            (tmp_path / f"cpu/cpu{core}/topology").mkdir(parents=True)
            (tmp_path / f"cpu/cpu{core}/topology/thread_siblings_list").write_text(f"{threads}\n")
    return tmp_path


@pytest.fixture
def cores(monkeypatch):
    def have(count: int, system) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
        monkeypatch.setattr(shares, "_SYSTEM", system)

    return have


def test_a_card_stays_in_one_numa_node_and_has_whole_physical_cores(tmp_path, cores):
    pairs = {f"{core},{core + 4}": [core, core + 4] for core in range(4)}
    cores(8, machine(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, pairs))
    platform, two, notes = divide_host(2, 1, "cpu")
    assert (platform, two, notes) == ("cpu", [Share((0, 4, 1, 5)), Share((2, 6, 3, 7))], [])
    assert divide_host(4, 1, "cpu")[1] == [Share((0, 4)), Share((1, 5)), Share((2, 6)), Share((3, 7))]
    assert divide_host(1, 32, "cpu")[1] == [Share((0, 4, 1, 5, 2, 6, 3, 7))]


def test_shares_are_equal_and_what_is_left_stays_idle(tmp_path, cores):
    cores(7, tmp_path)
    assert divide_host(3, 1, "cpu")[1:] == (
        [Share((0, 1)), Share((2, 3)), Share((4, 5))],
        ["1 of 7 cores stay idle: each of 3 cards has 2"],
    )
    assert divide_host(7, 1, "cpu")[1][-1] == Share((6,))
    with pytest.raises(UsageError, match="expected at most 7 cards, one for each core, got 8"):
        divide_host(8, 1, "cpu")


@pytest.mark.parametrize(
    ("visible", "found", "expected"),
    [
        (None, ("gpu", ("0", "1", "2", "3", "4")), [("0", "1"), ("2", "3")]),
        ("7,5,3,1", ("gpu", ("7", "5", "3", "1")), [("7", "5"), ("3", "1")]),
    ],
)
def test_each_card_sees_gpus_of_its_own(monkeypatch, visible, found, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(shares, "_accelerators", lambda: found)
    for asked in ("auto", "gpu"):
        platform, cards, notes = divide_host(2, 2, asked)
        assert (platform, [share.device_ids for share in cards], notes) == ("gpu", expected, [])
    with cards[1].occupied():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(expected[1])
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
    with pytest.raises(UsageError, match=f"expected 6 GPUs for 3 cards of 2 each, got {len(found[1])} gpu"):
        divide_host(3, 2, "gpu")


def test_too_few_gpus_are_a_note_or_an_error(monkeypatch, cores, tmp_path):
    cores(4, tmp_path)
    monkeypatch.setattr(shares, "_accelerators", lambda: ("gpu", ("0",)))
    assert divide_host(2, 1, "auto")[::2] == ("cpu", ["1 of 2 devices are gpu: the cards run on virtual CPU devices"])
    monkeypatch.setattr(shares, "_accelerators", lambda: ("cpu", ()))
    assert divide_host(2, 1, "auto")[::2] == ("cpu", [])
    with pytest.raises(UsageError, match="expected 2 GPUs for 2 cards of 1 each, got none"):
        divide_host(2, 1, "gpu")
    with pytest.raises(UsageError, match="cards must run on cpu or gpu, got tpu"):
        divide_host(2, 1, "tpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't pin processes")
def test_a_share_is_occupied_inside_its_context_only():
    before = os.sched_getaffinity(0)
    with Share((min(before),)).occupied():
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
