"""`coppice eval`, `score` and `cluster` as several processes: rank 0 says what one process says, the others say nothing."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"


def start(size, *arguments):
    """The processes of the ranks, with the variables that torchrun sets."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [COPPICE, *map(str, arguments)]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(size)
    ]
    return ranks


def on_ranks(size, *arguments):
    """The (status, stdout, stderr) of each rank."""
    ranks = start(size, *arguments)
    try:
        outputs = [rank.communicate(timeout=240) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs)]


def first_of(size, *arguments):
    """What rank 0 prints; checks that all end well and the others print nothing."""
    ends = on_ranks(size, *arguments)
    for status, _, errors in ends:
        assert status == 0, errors
    assert [out for _, out, _ in ends[1:]] == [""] * (size - 1)
    return ends[0][1]


def alone(*arguments):
    done = subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_close(found, wanted, tolerance=1e-5):
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key], tolerance)
    elif isinstance(wanted, list) and wanted and all(isinstance(x, float) for x in wanted):
        assert found == pytest.approx(wanted, rel=tolerance, abs=tolerance * max(map(abs, wanted)))
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted):
            assert_close(a, b, tolerance)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=tolerance, abs=1e-9)
    else:
        assert found == wanted


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A MoE model, a dense one and a token file."""
    directory = tmp_path_factory.mktemp("made")
    for name, family, sizes in [("moe", "qwen3_moe", ["num_experts=6", "top_k=2"]), ("dense", "llama", [])]:
        subprocess.run([GENERATE, directory / name, family, "F32", "vocab_size=64", *sizes], check=True, timeout=300)
    write_tokens(directory / "t", [(1 + i * i % 61) % 64 for i in range(1200)])
    return directory


@pytest.mark.parametrize("experts", [1, 2])
def test_eval(made, experts):
    arguments = ["eval", made / "moe", "--tokens", made / "t", "--sequence-length", "32", "--batch", "3", "--threads", "1", "--json"]
    found = first_of(2, *arguments, "--expert-parallel", experts)
    assert_close(json.loads(found), json.loads(alone(*arguments)))


@pytest.mark.parametrize("experts", [1, 2])
def test_score(made, tmp_path, experts):
    arguments = ["score", made / "moe", made / "t", "--batches", "2", "--batch-tokens", "160", "--sequence-length", "32", "--threads", "1"]
    first_of(2, *arguments, "--expert-parallel", experts, "--out", tmp_path / "ranks.json")
    alone(*arguments, "--out", tmp_path / "one.json")
    assert_close(*(json.loads((tmp_path / name).read_text()) for name in ("ranks.json", "one.json")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "ranks.json"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("deep") / "m"
    subprocess.run([GENERATE, directory, "qwen3_moe", "F32", "vocab_size=64", "num_layers=12", "num_experts=8", "top_k=2"], check=True, timeout=300)
    return directory


@pytest.mark.parametrize("experts", [1, 2])
def test_a_killed_score_goes_on_with_the_same_numbers(made, deep, tmp_path, experts):
    command = ["score", deep, made / "t", "--batches", "2", "--batch-tokens", "256", "--sequence-length", "32", "--threads", "1", "--expert-parallel", experts]
    first_of(2, *command, "--out", tmp_path / "undisturbed.json")
    out = tmp_path / "s.json"
    state = tmp_path / ".s.json.rank-1.layers.tmp-work" / "model" / "state.json"
    arguments = [*command, "--out", out, "--max-memory", "1KB", "--resume"]
    ranks = start(2, *arguments)
    while all(rank.poll() is None for rank in ranks) and not state.exists():
        time.sleep(0.001)
    ranks[1].kill()
    outputs = [rank.communicate(timeout=60) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [4, -9] and "rank 1 (" in outputs[0][1], outputs
    left = json.loads(state.read_text())["layers_left"]
    assert 0 < left < 12 and not out.exists()
    ends = on_ranks(2, *arguments, "--seed", "9")
    assert {status for status, _, _ in ends} <= {2, 4} and any("other settings" in errors for _, _, errors in ends), ends
    first_of(2, *arguments)
    assert out.read_bytes() == (tmp_path / "undisturbed.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "undisturbed.json"]


def test_the_next_start_removes_what_killed_ranks_left(made, deep, tmp_path):
    out = tmp_path / "s.json"
    arguments = ["score", deep, made / "t", "--batches", "2", "--batch-tokens", "256", "--sequence-length", "32", "--threads", "1", "--max-memory", "1KB", "--out", out]
    ranks = start(3, *arguments)
    state = tmp_path / ".s.json.rank-2.layers.tmp-work" / "model" / "state.json"
    while all(rank.poll() is None for rank in ranks) and not state.exists():
        time.sleep(0.001)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.communicate()
    assert len(list(tmp_path.iterdir())) == 3
    alone(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_cluster(made, tmp_path):
    arguments = ["cluster", made / "dense", made / "t", "--clusters", "3", "--tokens", "320", "--sequence-length", "32", "--threads", "1", "--json"]
    found, wanted = (json.loads(run("--out", tmp_path / name)) for run, name in [(lambda *a: first_of(2, *arguments, *a), "r"), (lambda *a: alone(*arguments, *a), "o")])
    assert_close(found["layers"], wanted["layers"])
    assert (tmp_path / "r").stat().st_size == (tmp_path / "o").stat().st_size


def test_all_ranks_end_when_one_cannot_write(made, tmp_path):
    """Only rank 0 writes; the other one says why it ends."""
    out = tmp_path / "gone" / "scores.json"
    ends = on_ranks(2, "score", made / "moe", made / "t", "--batches", "1", "--batch-tokens", "64", "--sequence-length", "32", "--threads", "1", "--out", out)
    assert all(status != 0 for status, _, _ in ends), ends
    assert "gone" in ends[0][2]


@pytest.mark.parametrize("command", [["eval", "moe", "--tokens", "t"], ["score", "moe", "t", "--out", "s.json"]])
@pytest.mark.parametrize("ranks, group", [(1, 2), (1, 0), (2, 3), (2, -1)])
def test_an_expert_group_that_does_not_fit_is_named_as_the_user_wrote_it(made, command, ranks, group):
    ends = on_ranks(ranks, *[made / word if word in ("moe", "t", "s.json") else word for word in command], "--expert-parallel", group)
    for status, _, errors in ends:
        assert status == 2 and f"--expert-parallel: groups of {group} ranks in a run of {ranks}" in errors, errors
        assert "parallel.expert" not in errors and ("torchrun" in errors) == (ranks == 1)
