"""Whole commands on a device whose memory the host cannot read (tests/guarded): a host access ends the process with a fault."""

import json
import os
import pathlib
import subprocess
import sys

import numpy
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build" / "release"))
DEVICE = "privateuseone:0"
FEW = ["--batches", 2, "--batch-tokens", 128, "--sequence-length", 16, "--threads", 1]


def coppice(*arguments):
    return subprocess.run([BUILD / "tests" / "coppice_guarded", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def told_by(*arguments):
    done = coppice(*arguments, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def add_tokenizer(directory):
    """One token a byte, and one that ends documents."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models with experts (glm4_moe; gpt_oss, which has biases) and without (llama), a grown one, tokens, questions."""
    world = tmp_path_factory.mktemp("world")
    for family in ("glm4_moe", "gpt_oss", "llama"):
        subprocess.run([BUILD / "tests" / "families_generate", world / family, family, "F32", "vocab_size=260"], check=True, timeout=120)
    add_tokenizer(world / "glm4_moe")
    write_tokens(world / "t", numpy.cumsum(numpy.random.default_rng(1).integers(0, 3, 4000)) % 260, 40)
    write_tokens(world / "v", numpy.cumsum(numpy.random.default_rng(2).integers(0, 3, 400)) % 260)
    (world / "q.jsonl").write_text('{"context": "one tree", "choices": ["is", "and two"], "answer": 1}\n{"context": "b", "choices": ["c", "d", "e"], "answer": 0}\n')
    done = coppice("expand", world / "glm4_moe", world / "grown", "--expert-init", "copy_noise")
    assert done.returncode == 0, done.stderr
    return world


def leaves(value):
    """Every number in some JSON, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in leaves(item)]
    return [value] if isinstance(value, (int, float)) else []


def assert_like(found, wanted, share=1e-3):
    a, b = numpy.array(leaves(found), float), numpy.array(leaves(wanted), float)
    assert a.shape == b.shape
    numpy.testing.assert_allclose(a, b, rtol=share, atol=1e-6)


# ---- score, eval, cluster, verify, plan ----

@pytest.mark.parametrize("family, dtype", [("glm4_moe", "f32"), ("glm4_moe", "bf16"), ("gpt_oss", "f32")])
def test_score_gives_the_numbers_of_the_cpu_whatever_the_memory(world, tmp_path, family, dtype):
    command = ["score", world / family, world / "t", *FEW, "--dtype", dtype]
    there = told_by(*command, "--device", DEVICE, "--out", tmp_path / "there")
    layered = told_by(*command, "--device", DEVICE, "--out", tmp_path / "layered", "--max-memory", "1KB")
    assert layered == there
    if dtype == "f32":
        here = told_by(*command, "--device", "cpu", "--out", tmp_path / "here")
        for metric in here["metrics"]:
            assert_like(there["metrics"][metric], here["metrics"][metric], 5e-3 if metric == "taylor" else 1e-3)
    done = coppice("expand", world / family, tmp_path / "grown", "--scores", tmp_path / "there", "--experts", "1.5x")
    assert done.returncode == 0, done.stderr


def test_eval_gives_the_numbers_of_the_cpu(world):
    command = ["eval", world / "glm4_moe", "--tokens", world / "t", "--tasks", world / "q.jsonl", "--against", world / "grown",
               "--max-tokens", 600, "--sequence-length", 16, "--threads", 1]
    here = told_by(*command, "--device", "cpu")
    for memory in ("1KB", "1GB"):
        assert_like(told_by(*command, "--device", DEVICE, "--max-memory", memory), here)


def test_cluster_writes_the_rows_of_the_cpu(world, tmp_path):
    command = ["cluster", world / "llama", world / "t", "--clusters", 4, "--tokens", 512, "--sequence-length", 16, "--threads", 1]
    for name, device in (("here", "cpu"), ("there", DEVICE)):
        told_by(*command, "--device", device, "--out", tmp_path / name)
    here, there = load_file(tmp_path / "here"), load_file(tmp_path / "there")
    assert here.keys() == there.keys()
    for name in here:
        numpy.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-5)


def test_verify_runs_both_models(world):
    command = ["verify", world / "glm4_moe", world / "grown", "--function", world / "t", "--max-tokens", 400, "--sequence-length", 16, "--threads", 1]
    here, there = (told_by(*command, "--device", device)["function"] for device in ("cpu", DEVICE))
    assert_like(there, here)


def test_plan_times_steps(world):
    done = coppice("plan", world / "glm4_moe", "--measure", "--measure-device", DEVICE, "--measure-tokens", 64, "--measure-steps", 1, "--threads", 1, "--json")
    assert done.returncode in (0, 2), done.stderr  # so short a measurement may give a falling line, which is refused
    assert "measured" in done.stderr


# ---- train ----

SIZES = ["--model.vocab_size", 260, "--model.dim", 32, "--model.layers", 2, "--model.heads", 2, "--model.kv_heads", 1, "--model.head_dim", 16,
         "--model.experts", 4, "--model.expert_width", 16, "--model.dense_width", 32, "--model.first_dense_layers", 0,
         "--data.sequence_length", 16, "--train.batch_tokens", 128, "--train.micro_batch", 3, "--train.threads", 1, "--schedule.warmup", 0]
GROWTH = [{"at_step": 3, "experts": "2x", "select": "uniform"},
          {"at_step": 6, "experts": "1.5x", "select": "greedy", "metric": "load", "score_batches": 1}]


def train(world, out, *arguments, device=DEVICE):
    return told_by("train", *SIZES, "--data.train", world / "t", "--data.validation", world / "v", "--train.steps", 9, "--train.validate_every", 3,
                   "--checkpoint.every", 2, "--checkpoint.keep_last", 9, "--growth", json.dumps(GROWTH), "--handover.policy", "release", "--handover.steps", 2,
                   "--train.out", out, "--train.device", device, *arguments)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("family, dtype", [("glm4_moe", "f32"), ("qwen3_moe", "bf16")])
def test_a_run_that_grows_twice_learns_and_resumes(world, tmp_path, family, dtype):
    settings = ["--model.family", family, "--train.dtype", dtype]
    there = train(world, tmp_path / "there", *settings)
    here = train(world, tmp_path / "here", *settings, device="cpu")
    assert_like(list(losses(tmp_path / "there").values()), list(losses(tmp_path / "here").values()), 1e-3 if dtype == "f32" else 2e-2)
    assert there["last_step"] == 9 and json.loads((pathlib.Path(there["checkpoint"]) / "config.json").read_text())
    assert_like(there["validation_loss"], here["validation_loss"], 1e-3 if dtype == "f32" else 2e-2)

    train(world, tmp_path / "again", *settings, "--train.stop_at", 4)
    again = train(world, tmp_path / "again", *settings, "--train.resume")
    assert again["first_step"] == 4 and losses(tmp_path / "again") == losses(tmp_path / "there")
    for name in ("model.safetensors", "coppice.json"):
        assert (pathlib.Path(again["checkpoint"]) / name).read_bytes() == (pathlib.Path(there["checkpoint"]) / name).read_bytes(), name
    loss = told_by("eval", there["checkpoint"], "--tokens", world / "v", "--sequence-length", 16, "--device", "cpu", "--threads", 1)["loss"]
    assert numpy.isfinite(loss)


def test_the_demo_learns_on_a_device(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "sums.txt").write_text("".join(f"line {i}: {i} and {i + 1} are {2 * i + 1}; {i} times {i} is {i * i}\n" for i in range(8000)))
    (text / "python.txt").write_text("".join(path.read_text(errors="ignore") for path in sorted(pathlib.Path(os.__file__).parent.glob("*.py"))[:20]))
    done = coppice("demo", "--device", DEVICE, "--text", text, "--out", tmp_path / "demo", "--minutes", 0.034, "--seeds", 1, "--vocab-size", 300, "--dim", 32, "--layers", 1,
                   "--base-experts", 4, "--experts", "2x", "--expert-width", 32, "--select", "waterfill", "--threads", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "demo/seed-0/result.json").read_text())
    for arm in ("trunk", "control", "upcycled", "scratch"):
        assert result[arm]["mean_loss"] < 0.95 * numpy.log(300), arm


# ---- names of devices ----

COMMANDS = [("score glm4_moe t --out o", "--device"), ("eval glm4_moe --tokens t", "--device"), ("cluster llama t --out o", "--device"),
            ("verify glm4_moe grown --function t", "--device"), ("plan glm4_moe --measure", "--measure-device"), ("demo --out o", "--device"),
            ("train --data.train t --train.steps 1", "--train.device")]


@pytest.mark.parametrize("command, option", COMMANDS)
@pytest.mark.parametrize("name, words", [("gpu", ["'gpu'", "auto, cpu, cuda or cuda:"]), ("privateuseone:7", ["privateuseone:7", "the last one is privateuseone:1"])])
def test_a_device_that_is_not_there_is_named(world, command, option, name, words):
    first, *others = command.split()
    done = coppice(first, *(world / word if word in ("glm4_moe", "llama", "grown", "t", "o") else word for word in others), option, name)
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stderr)
    for word in words:
        assert word in done.stderr
    assert not (world / "o").exists()
