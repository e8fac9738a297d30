"""`coppice score` of models larger than memory, killed and continued, and merged over runs."""

import json
import os
import pathlib
import resource
import shutil
import signal
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
LIMIT = 192 << 20
SMALL = ["--batches", "2", "--batch-tokens", "64", "--sequence-length", "32", "--threads", "1"]


def coppice(*arguments, **options):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def told_by(*arguments, **options):
    done = coppice(*arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def generate(directory, *sizes):
    subprocess.run([GENERATE, directory, "qwen3_moe", "F32", "vocab_size=64", *sizes], check=True, timeout=300)
    return directory


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two token files whose ids are bytes below 64."""
    directory = tmp_path_factory.mktemp("tokens")
    for name, first in [("t", 1), ("u", 5)]:
        ids = [(first + i * i % 61) % 64 for i in range(4000)]
        write_tokens(directory / name, ids)
    return directory / "t", directory / "u"


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("deep") / "m", "num_layers=12", "num_experts=8", "top_k=2")


@pytest.mark.parametrize("layers", [4, 40])
def test_a_model_several_times_larger_than_memory_is_scored(tmp_path, tokens, layers):
    """16 MiB of weights a layer: of 40 layers 640 MiB, in a process that may have 192 MiB of data."""
    sizes = ["model_dim=512", "expert_width=256", "num_experts=10", "top_k=2", f"num_layers={layers}"]
    model = generate(tmp_path / "m", *sizes)
    weights = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    assert weights > layers * (15 << 20)
    limited = dict(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)))
    whole = ["score", model, tokens[0], "--out", tmp_path / "s.json", *SMALL]
    if layers == 40:
        assert weights > 3 * LIMIT
        refused = coppice(*whole, "--max-memory", "100GB", **limited)
        assert refused.returncode == 4 and "out of memory" in refused.stderr, "the limit limits nothing"
    told = told_by(*whole, "--max-memory", "1MB", **limited)
    assert len(told["metrics"]["gradient_squared"]["fc1"]["sum"]) == layers
    assert [f.name for f in tmp_path.iterdir() if "s.json" in f.name] == ["s.json"]


def killed_once_it_saved(arguments, state):
    """Runs, and kills once some layers are done; how many are left."""
    process = subprocess.Popen([COPPICE, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    return json.loads(state.read_text())["layers_left"]


def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path, deep, tokens):
    command = ["score", deep, tokens[0], "--batches", "2", "--batch-tokens", "256", "--sequence-length", "64", "--threads", "1"]
    assert coppice(*command, "--out", tmp_path / "undisturbed.json").returncode == 0
    for memory in ["1KB", "100KB"]:  # all kept activations on disk, some in memory
        out = tmp_path / f"{memory}.json"
        work = tmp_path / f".{out.name}.layers.tmp-work"
        arguments = [*command, "--out", out, "--max-memory", memory]
        left = killed_once_it_saved(arguments, work / "model" / "state.json")
        assert 0 < left < 12 and not out.exists()
        other = coppice(*arguments, "--resume", "--seed", "9")
        assert other.returncode == 2 and "other settings" in other.stderr
        done = coppice(*arguments, "--resume")
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == (tmp_path / "undisturbed.json").read_bytes()
        assert not work.exists()


def test_without_resume_a_killed_run_leaves_nothing_that_counts(tmp_path, deep, tokens):
    out = tmp_path / "s.json"
    arguments = ["score", deep, tokens[0], "--out", out, "--max-memory", "1KB", "--threads", "1", "--batches", "2", "--batch-tokens", "256", "--sequence-length", "64"]
    killed_once_it_saved(arguments, tmp_path / f".{out.name}.layers.tmp-work" / "model" / "state.json")
    assert coppice(*arguments).returncode == 0
    assert [f.name for f in tmp_path.iterdir()] == ["s.json"]


def test_runs_merge_where_metrics_do(tmp_path, deep, tokens):
    a = told_by("score", deep, tokens[0], "--out", tmp_path / "a.json", *SMALL)
    b = told_by("score", deep, tokens[1], "--out", tmp_path / "b.json", *SMALL)
    merged = told_by("score", "--merge", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "m.json")
    assert set(merged["metrics"]) == {"weight_norm", "batch_fisher", "load", "gate_mass", "output_error"}
    assert merged["tokens"]["batches"] == 4 and merged["tokens"]["seen"] == 256
    for part in ("fc1", "fc2"):
        for metric in ("batch_fisher", "load", "gate_mass", "output_error"):
            for key in ("sum", "sum_sq"):
                values = [m["metrics"][metric][part][key]["3"] for m in (a, b, merged)]
                assert [x + y for x, y in zip(*values[:2])] == values[2]
    assert merged["metrics"]["weight_norm"] == a["metrics"]["weight_norm"]
    expand = ["expand", deep, tmp_path / "out", "--experts", "9", "--scores", tmp_path / "m.json", "--dry-run"]
    done = coppice(*expand)
    assert done.returncode == 2 and "have no 'gradient_squared'" in done.stderr, done.stderr
    assert coppice(*expand, "--metric", "batch_fisher").returncode == 0


def test_a_merge_counts_every_run_once(tmp_path, deep, tokens):
    for name, prefix in (("a", tokens[0]), ("b", tokens[1])):
        told_by("score", deep, prefix, "--out", tmp_path / f"{name}.json", *SMALL)
    told_by("score", "--merge", tmp_path / "a.json", tmp_path / "b.json", "--out", tmp_path / "m.json")
    done = coppice("score", "--merge", tmp_path / "m.json", tmp_path / "a.json", "--out", tmp_path / "n.json")
    assert done.returncode == 2 and "an earlier file contains" in done.stderr, done.stderr
    scores = json.loads((tmp_path / "a.json").read_text())
    for change in ({"metrics": {}}, {"tokens": {**scores["tokens"], "batches": 0, "seen": 0}}):
        (tmp_path / "bad.json").write_text(json.dumps({**scores, **change}))
        done = coppice("score", "--merge", tmp_path / "bad.json", tmp_path / "b.json", "--out", tmp_path / "n.json")
        assert done.returncode == 3 and "bad.json" in done.stderr, done.stderr
    assert not (tmp_path / "n.json").exists()


def test_scores_replace_scores_alone(tmp_path, deep, tokens):
    model = tmp_path / "m"
    shutil.copytree(deep, model)
    (tmp_path / "notes").write_text("mine")
    out = tmp_path / "s.json"
    for place in (model / "config.json", model / "s.json", tmp_path / "notes", f"{tokens[0]}.bin"):
        before = pathlib.Path(place).read_bytes() if os.path.exists(place) else None
        done = coppice("score", model, tokens[0], "--out", place, *SMALL)
        assert done.returncode == 2 and str(place) in done.stderr and "another name" in done.stderr, done.stderr
        assert (pathlib.Path(place).read_bytes() if os.path.exists(place) else None) == before
    for _ in range(2):
        assert coppice("score", model, tokens[0], "--out", out, *SMALL).returncode == 0
    done = coppice("score", "--merge", out, out, "--out", out)
    assert done.returncode == 2 and "is an input" in done.stderr


def test_runs_that_are_not_alike_do_not_merge(tmp_path, deep, tokens):
    told_by("score", deep, tokens[0], "--out", tmp_path / "a.json", *SMALL)
    other = generate(tmp_path / "other", "num_layers=12", "expert_width=16", "num_experts=8", "top_k=2")
    told_by("score", other, tokens[0], "--out", tmp_path / "other.json", *SMALL)
    larger = [*SMALL[:3], "96", *SMALL[4:]]
    told_by("score", deep, tokens[1], "--out", tmp_path / "larger.json", *larger)
    for second, word in [("other.json", "another model"), ("larger.json", "batches of 96 tokens"), ("a.json", "an earlier file contains")]:
        done = coppice("score", "--merge", tmp_path / "a.json", tmp_path / second, "--out", tmp_path / "m.json")
        assert done.returncode == 2 and word in done.stderr, done.stderr
    done = coppice("score", "--merge", tmp_path / "a.json", tmp_path / "larger.json", "--out", tmp_path / "m.json", "--seed", "3")
    assert done.returncode == 2 and "--seed: it has no effect here; a merge only reads" in done.stderr
    assert not (tmp_path / "m.json").exists()
