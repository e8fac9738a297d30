"""bench/train.py as far as a machine without a GPU goes: arguments, tables, and a run on the CPU with a program in coppice's place."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "bench"
RECIPES = BENCH.parent / "recipes/bench"


def load(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name, tflops", [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312),
                                          ("NVIDIA A10", 125), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA L4", 121), ("a card of next year", None)])
def test_a_card_has_the_peak_of_its_data_sheet(name, tflops):
    assert load("card").peak_flops(name) == (tflops and tflops * 1e12)


def test_results_have_the_cards_name():
    path = load("card").results_file("train", "NVIDIA H100 80GB HBM3")
    assert path.parent == BENCH / "results" and path.name.startswith("train_nvidia_h100_80gb_hbm3_20")


def test_every_device_has_recipes():
    train = load("train")
    assert [path.stem for path in train.recipes_for("cuda")] == ["gpu_e64_k8"]
    assert [path.stem for path in train.recipes_for("cpu")] == ["e256_k8", "e32_k4", "e64_k8"]


def test_the_share_of_the_peak_is_of_the_products_of_a_step():
    run = tomllib.loads((RECIPES / "gpu_e64_k8.toml").read_text())
    m, tokens = run["model"], run["train"]["batch_tokens"]
    experts = 3 * m["dim"] * m["expert_width"] * m["top_k"] * m["layers"]
    flops = load("train").step_flops(run)
    assert 6 * tokens * experts < flops < 1.7 * 6 * tokens * experts  # the rest: attention, router and output layer
    table = load("train").table({"coppice": {"tokens_per_s": tokens, "peak_bytes": 3 * 2**30},
                                 "peer": {"tokens_per_s": tokens / 2, "peak_bytes": None}, "other": {"failed": "out of memory"}}, run, flops * 4)
    assert table.splitlines() == ["| | tokens/s | coppice is | peak MiB | of the bf16 peak |", "|---|---:|---:|---:|---:|",
                                  f"| coppice | {tokens} | 1.00 x | 3072 | 25.0% |", f"| peer | {tokens // 2} | 2.00 x |  | 12.5% |",
                                  "| other | failed: out of memory | | | |"]


@pytest.fixture
def tiny(tmp_path):
    """A recipe of a model that takes no time, and a program that says what it was called with."""
    text = (RECIPES / "e32_k4.toml").read_text()
    for key, value in {"vocab_size": 64, "dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "experts": 4, "top_k": 2,
                       "expert_width": 32, "dense_width": 32, "sequence_length": 16, "batch_tokens": 32, "micro_batch": 2}.items():
        text = "\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.splitlines())
    (tmp_path / "tiny.toml").write_text(text)
    program = tmp_path / "coppice"
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/called\necho '{{\"tokens_per_s\": 1000, \"peak_rss_bytes\": 1048576}}'\n")
    program.chmod(0o755)
    return tmp_path


def run(tiny, *args):
    return subprocess.run([sys.executable, BENCH / "train.py", tiny / "tiny.toml", *args], capture_output=True, text=True,
                          env={**os.environ, "COPPICE_BIN": str(tiny / "coppice")})


def test_runs_beside_the_peers_on_the_cpu(tiny):
    pytest.importorskip("transformers")
    done = run(tiny, "--device", "cpu", "--variants", "grouped_mm_bf16")
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    rows = [line.split(" | ")[0] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["|", "| coppice", "| bound: GEMMs and AdamW", "| transformers grouped_mm_bf16"]
    assert "--train.device cpu" in (tiny / "called").read_text()


def test_says_that_there_is_no_gpu(tiny):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run(tiny, "--device", "cuda")
    assert done.returncode == 4 and "no GPU" in done.stderr
