"""Ranks as processes of this machine: what the others learn of one that is lost, and how soon."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from ranks import LATEST_MS, PROGRAM, Ranks, failure, fatal_ms, free_port  # noqa: E402


def expect_survivors(ranks, size, victim, sentence, fatal=None):
    """Every rank but the victim ends by itself, soon, and with this sentence."""
    ended = ranks.end(set(range(size)) - {victim})
    if fatal is None:
        ranks.processes[victim].kill()
        fatal = fatal_ms(ranks.end({victim})[victim][1])
    for rank, (status, output) in ended.items():
        at, text = failure(output)
        assert text == sentence, rank
        assert status == 4
        assert at - fatal < LATEST_MS, rank


@pytest.mark.parametrize("size", [2, 4])
def test_a_run_ends_in_order(size):
    with Ranks(size) as ranks:
        for rank, (status, output) in ranks.end().items():
            assert status == 0, output
            assert f"rank {rank} of {size}" in output and output.endswith(f"rank {rank} done\n")


@pytest.mark.parametrize("size, victim", [(2, 1), (4, 3), (4, 1)])
def test_a_killed_rank_is_named(size, victim):
    with Ranks(size, KILL=victim) as ranks:
        expect_survivors(ranks, size, victim, f"{ranks.name(victim)} is gone (killed?)")


def test_the_rank_that_serves_the_rendezvous_is_killed():
    with Ranks(4, KILL=0) as ranks:
        expect_survivors(ranks, 4, 0, f"{ranks.name(0)} is gone (killed?), and with it the rendezvous at {ranks.place}")


@pytest.mark.parametrize("size, victim", [(2, 0), (2, 1), (4, 0), (4, 2)])
def test_an_exception_is_told(size, victim):
    with Ranks(size, THROW=victim) as ranks:
        status, output = ranks.end({victim})[victim]
        assert status == 4 and failure(output)[1] == "no space left on 'shard 3'"
        expect_survivors(ranks, size, victim, f"{ranks.name(victim)} ended with: no space left on 'shard 3'", fatal_ms(output))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_is_told(victim):
    with Ranks(2, SIGNAL=victim) as ranks:
        status, output = ranks.end({victim})[victim]
        assert status == 143 or status == 130, output
        expect_survivors(ranks, 2, victim, f"{ranks.name(victim)} ended with: {failure(output)[1]}", fatal_ms(output))


@pytest.mark.parametrize("size, victim", [(2, 1), (4, 2)])
def test_a_stopped_process_is_named(size, victim):
    with Ranks(size, STOP=victim, SILENCE_MS=3000) as ranks:
        expect_survivors(
            ranks, size, victim,
            f"{ranks.name(victim)} does not answer since 3 s (its process is stopped, or its host or network is down)")


def test_the_rank_that_serves_the_rendezvous_is_stopped():
    with Ranks(4, STOP=0, SILENCE_MS=3000) as ranks:
        expect_survivors(
            ranks, 4, 0,
            f"the rendezvous at {ranks.place} does not answer since 3 s; {ranks.name(0)} serves it (its process is stopped, or its host or the network is down)")


@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_that_hangs_is_named_after_the_time_out(victim):
    with Ranks(4, HANG=victim, TIMEOUT_MS=2000) as ranks:
        expect_survivors(ranks, 4, victim, f"{ranks.name(victim)} does not answer since 2 s (hangs)")


# Its collectives are not waited for by the host, as NCCL's are not.
@pytest.mark.parametrize("variables, why", [({"HANG": 1, "TIMEOUT_MS": 2000}, "does not answer since 2 s (hangs)"), ({"KILL": 1}, "is gone (killed?)")], ids=["hang", "kill"])
def test_a_rank_with_a_device_is_named(variables, why):
    with Ranks(4, DEVICE="privateuseone:0", **variables) as ranks:
        expect_survivors(ranks, 4, 1, f"{ranks.name(1)} {why}")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_ends_before_the_others_is_named(victim):
    with Ranks(2, RETURN=victim) as ranks:
        sentence = f"{ranks.name(victim)} has ended its run while others wait for it (a bug in coppice, please report it)"
        for status, output in ranks.end().values():
            assert status == 4 and failure(output)[1] == sentence


SERVER = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True, wait_for_workers=False)
print("serves", flush=True)
time.sleep(600)
"""


@pytest.fixture
def agent():
    """What torchrun does for its ranks: serves the rendezvous."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "serves\n"
        yield server, port
        server.kill()


def test_the_rendezvous_is_lost(agent):
    server, port = agent
    with Ranks(2, port=port, STEPS=10**9, REPORT=0, TORCHELASTIC_USE_AGENT_STORE="True") as ranks:
        ranks.line(0, "fatal at")
        server.kill()
        for status, output in ranks.end().values():
            assert status == 4 and failure(output)[1] == f"the rendezvous at {ranks.place} is gone"


def test_rank_0_is_killed_while_another_program_serves_the_rendezvous(agent):
    with Ranks(4, port=agent[1], KILL=0, TORCHELASTIC_USE_AGENT_STORE="True") as ranks:
        expect_survivors(ranks, 4, 0, f"{ranks.name(0)} is gone (killed?)")


@pytest.mark.parametrize("what, words", [("SETTINGS", "settings"), ("PROGRAM", "programs")])
def test_ranks_that_differ_are_named(what, words):
    with Ranks(3, **{what: "2:other"}) as ranks:
        for status, output in ranks.end().values():
            assert status == 2
            assert f"the ranks have different {words}: {ranks.name(0)}: " in output and f"; {ranks.name(2)}: other (" in output
            assert ranks.name(1) not in output


def test_a_rank_that_does_not_come_is_named():
    with Ranks(3, start=[0, 1], PATIENCE_MS=3000) as ranks:
        for status, output in ranks.end().values():
            assert status == 4
            assert f"rank 2 of 3 did not come to the rendezvous at {ranks.place} within 3.0 s" in output


def test_nobody_serves_the_rendezvous():
    with Ranks(2, start=[1], PATIENCE_MS=1000) as ranks:
        status, output = ranks.end()[1]
        assert status == 4 and f"nobody serves the rendezvous at {ranks.place}" in output


def test_the_port_is_taken(agent):
    with Ranks(2, start=[0], port=agent[1]) as ranks:
        status, output = ranks.end()[0]
        assert status == 4 and f"rank 0 cannot serve the rendezvous at {ranks.place}" in output and "MASTER_PORT" in output


@pytest.mark.parametrize("what", ["KILL", "THROW"])
def test_torchrun_starts_the_ranks_again(what):
    arguments = ["--no-python", "--nproc-per-node", "2", "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", *arguments, PROGRAM], env=os.environ | {what: "1"}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"rank {rank} of 2 restart 0" in done.stdout and f"rank {rank} of 2 restart 1" in done.stdout
        assert f"rank {rank} done" in done.stdout
