"""Ranks on two hosts, which are network namespaces of this machine, joined by a link that is cut."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from ranks import LATEST_MS, Ranks, failure  # noqa: E402

LEFT, RIGHT = (f"coppice-{side}-{os.getpid()}" for side in ("left", "right"))
SERVER = "10.213.77.1"


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Two namespaces with one link; ranks 0 and 1 are in the first."""
    made = ip("netns", "add", LEFT, check=False)
    if made.returncode != 0:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("netns", "add", RIGHT)
        ip("link", "add", "link0", "netns", LEFT, "type", "veth", "peer", "name", "link0", "netns", RIGHT)
        for side, address in ((LEFT, SERVER), (RIGHT, "10.213.77.2")):
            ip("-n", side, "link", "set", "lo", "up")
            ip("-n", side, "link", "set", "link0", "up")
            ip("-n", side, "address", "add", f"{address}/24", "dev", "link0")
        yield [LEFT, LEFT, RIGHT, RIGHT]
    finally:
        ip("netns", "del", LEFT, check=False)
        ip("netns", "del", RIGHT, check=False)


@pytest.mark.parametrize("variables", [{}, {"GLOO_SOCKET_IFNAME": "link0"}], ids=["found", "named"])
def test_ranks_on_two_hosts_work_together(hosts, variables):
    with Ranks(4, address=SERVER, namespaces=hosts, **variables) as ranks:
        for rank, (status, output) in ranks.end().items():
            assert status == 0 and output.endswith(f"rank {rank} done\n"), output


def test_a_rank_on_the_other_host_is_killed(hosts):
    with Ranks(4, address=SERVER, namespaces=hosts, KILL=3) as ranks:
        for status, output in ranks.end({0, 1, 2}).values():
            assert status == 4 and failure(output)[1] == f"{ranks.name(3)} is gone (killed?)"


def test_a_link_that_is_cut_ends_the_ranks_on_both_sides(hosts):
    with Ranks(4, address=SERVER, namespaces=hosts, STEPS=10**9, REPORT=0, SILENCE_MS=4000) as ranks:
        cut = int(ranks.line(0, "fatal at").split()[-1])
        ip("-n", LEFT, "link", "set", "link0", "down")
        ended = ranks.end()
        for rank, (status, output) in ended.items():
            at, sentence = failure(output)
            assert status == 4
            assert at - cut < LATEST_MS
            if rank < 2:
                assert sentence == f"{ranks.name(2)}, {ranks.name(3)} do not answer since 4 s (the processes are stopped, or a host or the network is down)"
            else:
                assert sentence.startswith(f"the rendezvous at {ranks.place} does not answer since 4 s; {ranks.name(0)} serves it")
