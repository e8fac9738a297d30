"""`coppice eval`, `score` and `cluster` as several processes: rank 0 says what one process says, the others say nothing."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"


def on_ranks(size, *arguments):
    """The (status, stdout, stderr) of each rank, started as torchrun does."""
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


def test_expert_groups_need_a_launcher(made):
    done = subprocess.run([COPPICE, "eval", made / "moe", "--tokens", made / "t", "--expert-parallel", "2"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "torchrun" in done.stderr
