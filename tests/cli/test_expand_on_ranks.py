"""`coppice expand --part auto` and `convert --part auto` as launchers start them: one whole model, the bytes of one process."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_CORE_BIN", BUILD / "coppice")  # it needs no libtorch
GENERATE = BUILD / "tests" / "families_generate"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC", "SLURM", "OMPI", "PMI", "MPI_")
EXPAND = ["--experts", "2x", "--expert-init", "copy_noise", "--threads", "1"]


def clean_environment(**more):
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)} | {k: str(v) for k, v in more.items()}


def digests(directory):
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.rglob("*") if f.is_file()}


def torchrun(ranks, *command, launcher=()):
    arguments = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--standalone", f"--nproc-per-node={ranks}", *launcher, *map(str, command)]
    return subprocess.run(arguments, env=clean_environment(), capture_output=True, text=True, timeout=240)


def started(environments, *arguments):
    processes = [
        subprocess.Popen([COPPICE, *map(str, arguments)], env=clean_environment(**e), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for e in environments
    ]
    ends = [p.communicate(timeout=120) for p in processes]
    return [(p.returncode, *end) for p, end in zip(processes, ends)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "moe"
    subprocess.run([GENERATE, directory, "qwen3_moe", "BF16"], check=True, timeout=120)
    return directory


@pytest.fixture(scope="module")
def alone(model):
    out = model.parent / "alone"
    subprocess.run([COPPICE, "expand", model, out, *EXPAND], check=True, capture_output=True, timeout=120, env=clean_environment())
    return digests(out)


def test_torchrun_writes_the_bytes_of_one_process(model, alone, tmp_path):
    done = torchrun(2, COPPICE, "expand", model, tmp_path / "out", *EXPAND, "--part", "auto")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == alone
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing is left beside it"
    assert done.stdout.count("wrote ") == 1 and done.stdout.count(" is written, ") == 1, done.stdout


OF_LAUNCHER = {
    "Slurm": lambda rank, size: {"SLURM_PROCID": rank, "SLURM_NTASKS": size, "SLURM_LOCALID": rank, "SLURM_JOB_ID": 7, "SLURM_STEP_ID": 0,
                                 "SLURM_STEP_NODELIST": "n[1-4]"},
    "Open MPI": lambda rank, size: {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": size, "OMPI_COMM_WORLD_LOCAL_RANK": rank,
                                    "OMPI_COMM_WORLD_LOCAL_SIZE": size, "PMIX_NAMESPACE": "j1"},
    "MPICH": lambda rank, size: {"PMI_RANK": rank, "PMI_SIZE": size, "MPI_LOCALRANKID": rank, "MPI_LOCALNRANKS": size, "MASTER_PORT": 29500},
}


@pytest.mark.parametrize("name", OF_LAUNCHER)
def test_launchers_by_their_variables(model, alone, tmp_path, name):
    ends = started([OF_LAUNCHER[name](rank, 3) for rank in range(3)], "expand", model, tmp_path / "out", *EXPAND, "--part", "auto", "--json")
    assert [status for status, _, _ in ends] == [0, 0, 0], ends
    assert digests(tmp_path / "out") == alone
    [told] = [json.loads(out) for _, out, _ in ends if out]
    assert told["missing_parts"] == []


def test_without_a_launcher_auto_is_the_whole(model, alone, tmp_path):
    [(status, out, errors)] = started([{}], "expand", model, tmp_path / "out", *EXPAND, "--part", "auto")
    assert status == 0 and "wrote " in out, errors
    assert digests(tmp_path / "out") == alone


def test_convert_has_it_too(tmp_path):
    dense = tmp_path / "dense"
    subprocess.run([GENERATE, dense, "llama", "BF16"], check=True, timeout=120)
    subprocess.run([COPPICE, "convert", dense, tmp_path / "alone", "--experts", "4"], check=True, capture_output=True, timeout=120, env=clean_environment())
    ends = started([OF_LAUNCHER["Open MPI"](rank, 2) for rank in range(2)], "convert", dense, tmp_path / "out", "--experts", "4", "--part", "auto")
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")


def test_a_rank_that_fails_says_who_it_is_and_the_same_command_goes_on(model, alone, tmp_path):
    script = tmp_path / "rank.sh"  # all bytes of a model as small as this are the first part's
    script.write_text('#!/bin/bash\nif [ "$RANK" = 0 ]; then ulimit -f 8; fi\nexec "$@"\n')
    script.chmod(0o755)
    command = [COPPICE, "expand", model, tmp_path / "out", *EXPAND, "--part", "auto"]
    done = torchrun(2, script, *command)
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    assert "coppice: error: rank 0, part 1/2: " in done.stderr, done.stderr
    assert "rank 1, part 2/2: " not in done.stderr and "wrote " not in done.stdout
    done = torchrun(2, *command)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == alone


def test_a_part_that_comes_when_all_is_written_is_content(model, alone, tmp_path):
    ends = started([OF_LAUNCHER["Slurm"](rank, 2) for rank in range(2)], "expand", model, tmp_path / "out", *EXPAND, "--part", "auto")
    assert [status for status, _, _ in ends] == [0, 0], ends
    late = ["expand", model, tmp_path / "out", *EXPAND, "--part", "2/2", "--json"]
    [(status, out, errors)] = started([{}], *late)
    assert status == 0 and json.loads(out)["missing_parts"] == [] and json.loads(out)["bytes_written"] == 0, errors
    [(status, _, errors)] = started([{}], *late, "--seed", "7")
    assert status == 2 and "exists" in errors, "other settings: it is another model"
    assert digests(tmp_path / "out") == alone and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_rank_is_started_again_by_torchrun(model, alone, tmp_path):
    script = tmp_path / "rank.sh"
    script.write_text('#!/bin/bash\nif [ "$RANK" = 1 ] && [ "$TORCHELASTIC_RESTART_COUNT" = 0 ]; then kill -9 $$; fi\nexec "$@"\n')
    script.chmod(0o755)
    done = torchrun(2, script, COPPICE, "expand", model, tmp_path / "out", *EXPAND, "--part", "auto", launcher=["--max-restarts=1"])
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == alone


@pytest.mark.parametrize("environment, words", [
    ({"RANK": 0}, ["torchrun", "WORLD_SIZE"]),
    ({"RANK": 3, "WORLD_SIZE": 2, "LOCAL_RANK": 0}, ["contradict each other"]),
    ({"RANK": 0, "WORLD_SIZE": 500000, "LOCAL_RANK": 0, "MASTER_ADDR": "h", "MASTER_PORT": 1}, ["500000 processes", "99999 parts"]),
])
def test_variables_that_say_no_part(model, tmp_path, environment, words):
    [(status, _, errors)] = started([environment], "expand", model, tmp_path / "out", *EXPAND, "--part", "auto")
    assert status == 2 and all(word in errors for word in words), errors
    assert not list(tmp_path.iterdir())
