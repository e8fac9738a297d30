"""`coppice train` on several processes, as launchers start them: results, checkpoints, and what happens when one rank fails."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPPICE = os.environ["COPPICE_BIN"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC", "SLURM", "OMPI", "PMI")
SOON = 20  # seconds: ten for the ranks, and as many for a loaded machine


def clean_environment(**more):
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)} | more


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def settings(world, **more):
    """A run of seconds: 4 experts, 8 sequences of 16 tokens a step."""
    own = {
        "model.family": "glm4_moe", "model.vocab_size": 32, "model.dim": 32, "model.layers": 2, "model.heads": 2, "model.kv_heads": 1,
        "model.head_dim": 16, "model.experts": 4, "model.top_k": 2, "model.expert_width": 16, "model.dense_width": 32,
        "model.first_dense_layers": 0, "data.train": world / "t", "data.sequence_length": 16, "train.batch_tokens": 128, "train.micro_batch": 2,
        "train.steps": 12, "train.dtype": "f32", "optimizer.lr": 0.003, "schedule.warmup": 2, "train.threads": 1, "parallel.timeout": 60,
    } | more
    return [f"--{key}={value}" for key, value in own.items()]


def processes(world, ranks, environment_of, command=None, **more):
    """Starts `ranks` processes by hand, each with the variables that a launcher gives it."""
    arguments = [COPPICE, "train", *settings(world, **more)] if command is None else command
    return [
        subprocess.Popen(arguments, env=clean_environment(**environment_of(rank)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]


def by_mpi(ranks):
    port = free_port()
    return lambda rank: {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(ranks), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
                         "OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def by_slurm(ranks):
    port = free_port()
    return lambda rank: {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(ranks), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "77",
                         "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODELIST": "localhost",
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def torchrun(world, ranks, *launcher, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--no-python", f"--nproc-per-node={ranks}", f"--master-port={free_port()}",
               *launcher, COPPICE, "train", *settings(world, **more)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=240)


def ends(started, timeout=120):
    """Exit status and error text of each process."""
    out = []
    for process in started:
        try:
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for other in started:
                other.kill()
            raise
        out.append((process.returncode, errors))
    return out


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(run, step, started):
    end = time.monotonic() + 100
    while time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step:
            return
        assert all(process.poll() is None for process in started), [p.communicate() for p in started if p.poll() is not None]
        time.sleep(0.02)
    raise AssertionError("the run does not get on")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tmp_path_factory.mktemp("ranks")
    write_tokens(world / "t", numpy.cumsum(numpy.random.default_rng(1).integers(0, 3, 4000)) % 32, 40)
    subprocess.run([COPPICE, "train", *settings(world, **{"train.out": world / "one", "train.micro_batch": 8})], check=True, env=clean_environment(),
                   capture_output=True, timeout=120)
    return world


def expect_losses_of_one_rank(world, run):
    one, several = losses(world / "one"), losses(run)
    assert sorted(one) == sorted(several)
    for step, loss in one.items():
        assert abs(several[step] - loss) <= 1e-5 * loss, step


@pytest.mark.parametrize("ranks, experts", [(2, 1), (4, 2)])
def test_torchrun(world, tmp_path, ranks, experts):
    done = torchrun(world, ranks, **{"train.out": tmp_path / "run", "parallel.expert": experts, "train.micro_batch": 8 // ranks})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tokens per second") == 1, "one rank prints the result"
    expect_losses_of_one_rank(world, tmp_path / "run")


@pytest.mark.parametrize("program, options", [("mpirun.openmpi", ["--allow-run-as-root", "--oversubscribe"]), ("mpirun.mpich", ["-genv", "MASTER_PORT", None])])
def test_mpirun(world, tmp_path, program, options):
    """The launcher itself; Open MPI's ranks find a port by themselves."""
    if not shutil.which(program):
        pytest.skip(f"no {program}")
    command = [program, *(option or free_port() for option in options), "-n", "2", COPPICE, "train", *settings(world, **{"train.out": tmp_path / "run", "train.micro_batch": 4})]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("tokens per second") == 1, "one rank prints the result"
    expect_losses_of_one_rank(world, tmp_path / "run")


@pytest.mark.parametrize("launcher", [by_mpi, by_slurm])
def test_launchers_by_their_variables(world, tmp_path, launcher):
    started = processes(world, 2, launcher(2), **{"train.out": tmp_path / "run", "train.micro_batch": 4})
    for status, errors in ends(started):
        assert status == 0, errors
    expect_losses_of_one_rank(world, tmp_path / "run")


def test_stops_on_four_ranks_and_resumes_on_two_and_one(world, tmp_path):
    own = {"train.out": tmp_path / "run", "parallel.expert": 2}
    assert torchrun(world, 4, **own, **{"train.stop_at": 5}).returncode == 0
    assert torchrun(world, 2, **own, **{"train.stop_at": 9, "train.resume": "true"}).returncode == 0
    done = subprocess.run([COPPICE, "train", *settings(world, **{"train.out": tmp_path / "run", "train.resume": "true"})], env=clean_environment(),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expect_losses_of_one_rank(world, tmp_path / "run")


def long_run(tmp_path, **more):
    return {"train.out": tmp_path / "run", "train.steps": 100000, "checkpoint.every": 5, "schedule.warmup": 2} | more


def expect_whole_checkpoints(run):
    folders = list((run / "checkpoints").iterdir())
    assert folders
    for folder in folders:
        if folder.name.startswith("."):
            continue
        assert (folder / "trainer" / "trainer.json").exists()
        for file in folder.rglob("*.safetensors"):
            load_file(file)


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_ends_the_others(world, tmp_path, victim):
    started = processes(world, 3, by_mpi(3), **long_run(tmp_path, **{"train.batch_tokens": 192}))
    wait_for_step(tmp_path / "run", 12, started)
    started[victim].kill()
    began = time.monotonic()
    told = ends([p for i, p in enumerate(started) if i != victim])
    assert time.monotonic() - began < SOON
    for status, errors in told:
        assert status == 4, errors
        assert f"rank {victim} (" in errors and errors.count("coppice: error:") == 1, errors
    started[victim].communicate()
    expect_whole_checkpoints(tmp_path / "run")


def test_a_rank_that_hangs_ends_the_others(world, tmp_path):
    started = processes(world, 2, by_mpi(2), **long_run(tmp_path, **{"parallel.timeout": 5}))
    wait_for_step(tmp_path / "run", 7, started)
    started[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    [(status, errors)] = ends(started[:1])
    assert time.monotonic() - began < 5 + SOON
    assert status == 4 and "rank 1 (" in errors, errors
    started[1].kill()
    started[1].communicate()
    expect_whole_checkpoints(tmp_path / "run")


def test_a_signal_at_one_rank_stops_all_with_a_checkpoint(world, tmp_path):
    started = processes(world, 2, by_mpi(2), **long_run(tmp_path))
    wait_for_step(tmp_path / "run", 7, started)
    started[1].send_signal(signal.SIGTERM)
    (first, errors), (second, _) = ends(started)
    assert second == 143 and first != 0, errors
    steps = sorted(losses(tmp_path / "run"))
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert newest.name == f"step-{steps[-1]:08}", "the step that all had made"


def test_a_full_disk_at_one_rank(world, tmp_path):
    script = 'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then ulimit -f 8; fi; exec "$@"'
    arguments = ["bash", "-c", script, "bash", COPPICE, "train", *settings(world, **long_run(tmp_path, **{"checkpoint.every": 3, "model.vocab_size": 512}))]
    told = ends(processes(world, 2, by_mpi(2), command=arguments))
    assert told[1][0] == 4 and "rank 1 (" not in told[1][1], told[1][1]
    assert told[0][0] == 4 and "rank 1 (" in told[0][1], told[0][1]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not [p for p in checkpoints.iterdir()], "nothing is left of what could not be written"


def test_a_damaged_shard_that_one_rank_reads(world, tmp_path):
    subprocess.run([COPPICE, "train", *settings(world, **{"train.out": tmp_path / "made", "train.steps": 2, "schedule.warmup": 1})], check=True,
                   env=clean_environment(), capture_output=True, timeout=120)
    model = tmp_path / "made" / "checkpoints" / "step-00000002"
    [file] = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.mlp.experts.1.up_proj.weight"][0, 0] = numpy.nan
    save_file(tensors, file, {"format": "pt"})
    run = {"model.path": model, "parallel.expert": 2}
    arguments = [COPPICE, "train", *[s for s in settings(world, **run) if not s.startswith("--model.") or s.startswith("--model.path")]]
    told = ends(processes(world, 2, by_mpi(2), command=arguments))
    assert told[1][0] == 3 and "experts.1.up_proj.weight" in told[1][1], told[1][1]
    assert told[0][0] == 4 and "rank 1 (" in told[0][1] and "experts.1.up_proj.weight" in told[0][1], told[0][1]


def test_ranks_with_different_settings(world, tmp_path):
    of = by_mpi(2)
    started = [
        subprocess.Popen([COPPICE, "train", *settings(world, **{"optimizer.lr": lr})], env=clean_environment(**of(rank)), stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
        for rank, lr in enumerate((0.003, 0.004))
    ]
    for status, errors in ends(started):
        assert status == 2 and "settings" in errors, errors


def test_a_batch_that_cannot_be_divided(world):
    told = ends(processes(world, 3, by_mpi(3)))
    for status, errors in told:
        assert status in (2, 4) and "wanted the same number for each" in errors, errors


def test_an_expert_group_without_other_ranks(world):
    done = subprocess.run([COPPICE, "train", *settings(world, **{"parallel.expert": 2})], env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "parallel.expert: groups of 2" in done.stderr and "--expert-parallel" not in done.stderr


def test_torchrun_restarts_a_run(world, tmp_path):
    """A rank that is killed once: torchrun starts all again, and the run goes on from its newest checkpoint."""
    mark, run = tmp_path / "killed", tmp_path / "run"
    script = tmp_path / "rank.sh"
    arguments = " ".join(settings(world, **{"train.out": run, "train.steps": 400, "checkpoint.every": 4, "train.micro_batch": 4}))
    script.write_text(f"""#!/bin/bash
if [ "$TORCHELASTIC_RESTART_COUNT" = 0 ]; then
  {COPPICE} train {arguments} & child=$!
  if [ "$RANK" = 1 ]; then
    until [ -d {run}/checkpoints/step-00000008 ] || [ -d {run}/checkpoints/step-00000012 ]; do sleep 0.02; done
    touch {mark}; kill -9 $child
  fi
  wait $child
else
  exec {COPPICE} train {arguments} --train.resume
fi
""")
    script.chmod(0o755)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node=2", "--max-restarts=1",
                           f"--master-port={free_port()}", str(script)], env=clean_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert mark.exists()
    events = [json.loads(line).get("event") for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "resume" in events and max(losses(run)) == 400


def test_dcp_there_and_back(world, tmp_path):
    """torch's own reader sees the weights and the optimizer state; the way back gives the same checkpoint, with which training goes on."""
    checkpoint = max((world / "one" / "checkpoints").iterdir())
    script = ROOT / "tools" / "dcp"
    there, back = tmp_path / "dcp", tmp_path / "back"
    subprocess.run([sys.executable, script, "to", checkpoint, there], check=True, timeout=120)
    [file] = checkpoint.glob("*.safetensors")
    weights = load_file(file)
    state = {"model": {name: torch.empty(value.shape) for name, value in weights.items()},
             "optim": {"state": {"lm_head.weight": {"exp_avg": torch.empty(32, 32), "step": torch.empty(1, dtype=torch.int64)}}}}
    dcp.load(state, checkpoint_id=there, no_dist=True)
    for name, value in weights.items():
        assert (state["model"][name].numpy() == value).all(), name
    assert state["optim"]["state"]["lm_head.weight"]["step"].item() == 12
    assert state["optim"]["state"]["lm_head.weight"]["exp_avg"].abs().max() > 0
    subprocess.run([sys.executable, script, "from", there, back, "--like", checkpoint], check=True, timeout=120)
    for old in checkpoint.rglob("*.safetensors"):
        new = load_file(back / old.relative_to(checkpoint))
        for name, value in load_file(old).items():
            assert (new[name] == value).all() and new[name].dtype == value.dtype, name
    done = subprocess.run([COPPICE, "train", *[s for s in settings(world, **{"model.path": back, "train.start": "continue", "train.steps": 14})
                                               if not s.startswith("--model.") or s.startswith("--model.path")]],
                          env=clean_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    other = subprocess.run([sys.executable, script, "from", there, tmp_path / "other", "--like", world], capture_output=True, text=True, timeout=120)
    assert other.returncode != 0 and "no *.safetensors" in other.stderr and not (tmp_path / "other").exists()


def peak_of_a_rank(world, experts):
    """Bytes of rank 0, with bf16 values, f32 masters and ZeRO-1; nothing is saved."""
    done = torchrun(world, 2, **{"model.layers": 24, "model.dim": 256, "model.heads": 4, "model.kv_heads": 4, "model.head_dim": 64, "model.expert_width": 256,
                                 "model.dense_width": 256, "model.experts": experts, "train.dtype": "bf16", "train.steps": 3, "train.micro_batch": 4}, json="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)["peak_rss_bytes"]


def test_memory_of_a_rank_grows_as_plan_says(world):
    """12 bytes for each weight of the twelve more experts (docs/scaling.md, W = 2: 2 + 4 + 12 / 2); the least of two runs, because the allocator rounds up."""
    few, many = (min(peak_of_a_rank(world, experts) for _ in range(2)) for experts in (4, 16))
    added = 12 * 24 * (16 - 4) * 3 * 256 * 256
    assert abs(many - few - added) < 0.1 * added, (few, many, added)
