"""bench/ranks.py on made runs: what it predicts for 2 and 4 ranks from the run on one."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build/release"))
CONFIG = '[data]\nsequence_length = 64\n[train]\nbatch_tokens = 1024\nmicro_batch = 2\ndtype = "f32"\n'


def made_run(directory, seconds, settings="", **counted):
    directory.mkdir()
    (directory / "config.toml").write_text(CONFIG + settings)
    slow_start = [10.0] * 5
    lines = [{"step": i, "tokens_per_s": 1024 / t, **counted} for i, t in enumerate([*slow_start, seconds, seconds, seconds])]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "checkpoint"}\n')
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("ranks")
    made_run(world / "one", 0.5)
    (world / "one/checkpoints").mkdir()
    subprocess.run([BUILD / "tests/families_generate", world / "one/checkpoints/step-00000008", "qwen3_moe", "F32", "num_experts=8", "top_k=2"], check=True, timeout=120)
    made_run(world / "two", 0.4)
    made_run(world / "divided", 0.4, "[parallel]\nexpert = 2\n", **{"sent/all_to_all": 1234})
    made_run(world / "four", 0.3, "[parallel]\nexpert = 2\n")
    (world / "fast").write_text("2 1 1e-13\n2 1e6 1e-10\n")
    (world / "slow").write_text("2 1 1e-5\n2 1e6 1\n")
    return world


def rows(world, *arguments):
    done = subprocess.run([sys.executable, REPOSITORY / "bench/ranks.py", *arguments], cwd=world, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if re.match(r"\| \d", line)], done.stdout


def test_one_rank_is_the_measure_of_the_others(world):
    """On links that take no time, ranks that share a machine are as fast as one rank, and ranks on machines of their own in proportion."""
    found, _ = rows(world, "fast", "one", "2=two", "4=four")
    assert [row[:5] for row in found[:3]] == [["1", "1", "500.0", "500.0", "+0.0 %"], ["2", "1", "500.0", "400.0", "+25.0 %"], ["4", "2", "500.0", "300.0", "+66.7 %"]]
    found, _ = rows(world, "fast", "one", "2=two", "4=four", "--own-machines")
    assert [row[2] for row in found[:3]] == ["500.0", "250.0", "125.0"]


def test_slow_links_take_their_time_and_bytes_are_compared(world):
    found, text = rows(world, "slow", "one", "2=divided")
    one, two, counted = found
    assert float(two[2]) > float(one[2]) + 100 and float(two[6]) > 0
    assert counted[:3] == ["2", "2", "all_to_all"] and counted[4] == "1,234"
    # 1024 / 2 tokens of top-2 in every layer; half of the rows leave a rank: 4 times their vector and two gates. Counts for 4 experts in each of 4 micro-batches.
    config = json.loads((world / "one/checkpoints/step-00000008/config.json").read_text())
    assert int(counted[3].replace(",", "")) == config["num_hidden_layers"] * (512 * (4 * 4 * config["hidden_size"] + 8) + 4 * 4 * 8)


def test_what_is_missing_is_named(world, tmp_path):
    made_run(tmp_path / "bare", 1)
    for arguments, word in [(("fast", "one", "two"), "RANKS=RUN"), (("fast", tmp_path / "bare", "2=two"), "no checkpoint"), (("nowhere", "one", "2=two"), "nowhere")]:
        done = subprocess.run([sys.executable, REPOSITORY / "bench/ranks.py", *arguments], cwd=world, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and word in done.stderr
