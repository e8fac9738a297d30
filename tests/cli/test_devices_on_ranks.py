"""Whole training runs on several ranks whose device the host cannot read (tests/guarded): ranks are processes, as each has one device thread of autograd.
The result of a collective there is NaN until it is waited for."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build" / "release"))
STEPS, GROWS_AT, STOPS_AT = 24, 12, 16
GROWTH = [{"at_step": GROWS_AT, "experts": "7", "score_batches": 2, "expert_init": "interpolate"}]


def settings(world, ranks, **more):
    """8 windows a step; each of the ranks reads its part in one pass."""
    own = {
        "model.family": "glm4_moe", "model.vocab_size": 32, "model.dim": 32, "model.layers": 2, "model.heads": 2, "model.kv_heads": 1,
        "model.head_dim": 16, "model.experts": 4, "model.top_k": 2, "model.expert_width": 16, "model.dense_width": 32, "model.first_dense_layers": 0,
        "data.train": world / "t", "data.validation": world / "v", "data.sequence_length": 16, "train.batch_tokens": 128, "train.micro_batch": 8 // ranks,
        "train.steps": STEPS, "train.dtype": "f32", "train.validate_every": GROWS_AT, "optimizer.lr": 0.003, "schedule.warmup": 2, "train.threads": 1,
        "train.device": "privateuseone:0", "growth": json.dumps(GROWTH), "handover.policy": "release", "handover.steps": 6, "checkpoint.every": STOPS_AT,
        "parallel.timeout": 60,
    } | more
    return ["train", *(f"--{key}={value}" for key, value in own.items())]


def run(ranks, arguments):
    """The error texts of ranks that all end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    own = lambda rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # noqa: E731
    started = [
        subprocess.Popen([BUILD / "tests" / "coppice_guarded", *map(str, arguments)], env={**os.environ, **own(rank)}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * ranks, [errors[-2000:] for _, errors in ends]


def scalars(directory, name):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def assert_near(found, wanted):
    assert sorted(found) == sorted(wanted) and wanted
    for step, value in wanted.items():
        assert abs(found[step] - value) <= 1e-5 * abs(value), step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("guarded")
    write_tokens(world / "t", numpy.cumsum(numpy.random.default_rng(1).integers(0, 3, 4000)) % 32, 40)
    write_tokens(world / "v", numpy.cumsum(numpy.random.default_rng(2).integers(0, 3, 400)) % 32)
    run(1, settings(world, 1, **{"train.out": world / "one"}))
    return world


@pytest.mark.parametrize("ranks, experts", [(2, 1), (2, 2), (4, 2)])
def test_a_run_that_grows_has_the_losses_of_one_rank(world, tmp_path, ranks, experts):
    run(ranks, settings(world, ranks, **{"train.out": tmp_path / "run", "parallel.expert": experts}))
    assert_near(scalars(tmp_path / "run", "loss"), scalars(world / "one", "loss"))
    assert len(scalars(tmp_path / "run", "loss")) == STEPS
    [validation] = {key for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() for key in json.loads(line) if key.startswith("validation/")}
    assert_near(scalars(tmp_path / "run", validation), scalars(world / "one", validation))
    checkpoint = tmp_path / "run" / "checkpoints" / f"step-{STEPS:08}"
    assert json.loads((checkpoint / "config.json").read_text())["n_routed_experts"] == 7
    for file in checkpoint.rglob("*.safetensors"):
        assert all(numpy.isfinite(values).all() for values in load_file(file).values()), file


def test_the_undisturbed_run_bit_for_bit_after_a_stop(world, tmp_path):
    own = {"parallel.expert": 2}
    run(4, settings(world, 4, **own, **{"train.out": tmp_path / "whole"}))
    run(4, settings(world, 4, **own, **{"train.out": tmp_path / "parts", "train.stop_at": STOPS_AT}))
    run(4, [*settings(world, 4, **own, **{"train.out": tmp_path / "parts"}), "--train.resume"])
    assert scalars(tmp_path / "parts", "loss") == scalars(tmp_path / "whole", "loss")
    last = f"checkpoints/step-{STEPS:08}"
    for file in (tmp_path / "whole" / last).rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "parts" / last / file.relative_to(tmp_path / "whole" / last)).read_bytes(), file
