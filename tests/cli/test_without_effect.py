"""An option that is given and changes nothing is an error, in every command: the table below has the options that depend on others."""

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with models with experts (moe) and without (dense), tokens, texts, scores that nobody reads and a list of questions."""
    world = tmp_path_factory.mktemp("world")
    for name, family, sizes in (("moe", "mixtral", ["num_experts=4", "top_k=2"]), ("dense", "llama", ["dense_width=48"])):
        subprocess.run([BUILD / "tests" / "families_generate", world / name, family, "F32", "vocab_size=64", "num_layers=2", *sizes], check=True, timeout=120)
    write_tokens(world / "t", [i * i % 61 for i in range(4000)])
    (world / "a.txt").write_text("One tree. Two trees.")
    (world / "b.jsonl").write_text('{"text": "three trees"}\n')
    (world / "q.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "answer": 0}\n')
    return world


TRAIN = "train --data.train t --train.steps 2 --data.sequence_length 16 --train.batch_tokens 64 --train.dtype f32 --train.threads 1 --schedule.warmup 0"
SMALL = TRAIN + " --model.vocab_size 64 --model.dim 32 --model.layers 2 --model.heads 2 --model.kv_heads 1 --model.head_dim 16 --model.experts 4 --model.expert_width 16"
GROWTH = SMALL + " --model.first_dense_layers 0 --growth"
CASES = [  # the command, the option without effect, and why; the value is often the default, since it is the giving that is wrong
    ("tokenize a.txt --out o --tokenizer moe", "--vocab-size 2048", "--tokenizer uses a finished tokenizer"),
    ("tokenize a.txt --out o --tokenizer moe", "--seed 0", "--tokenizer uses a finished tokenizer"),
    ("tokenize a.txt --out o --tokenizer moe", "--text-key text", "no TEXT is a file of JSON lines"),
    ("tokenize b.jsonl --out o --tokenizer moe", "--split-at-blank-lines", "no TEXT is a plain text file"),
    ("expand moe o", "--max-duplicates 3", "the rule 'uniform'"),
    ("expand moe o --select uniform", "--max-duplicates 1", "the rule 'uniform'"),
    ("expand moe o", "--temperature 1", "the rule 'uniform'"),
    ("expand moe o", "--metric gradient_squared", "does not use scores"),
    ("expand moe o", "--layer-selection both_average", "does not use scores"),
    ("expand moe o", "--balance-bias copy", "no selection bias"),
    ("expand moe o", "--optimizer-state copy", "no trainer/"),
    ("expand moe o", "--allow-regroup", "no router groups"),
    ("expand moe o", "--dequantize", "the model is not quantised"),
    ("expand moe o --dry-run", "--resume", "a dry run writes nothing"),
    ("expand moe o --split 2", "--experts 2x", "the number of experts"),
    ("convert dense o", "--trunk average", "there is only one MODEL"),
    ("convert dense o", "--init-all", "expert-init is 'copy'"),
    ("convert dense o", "--no-virtual-group", "granularity 1"),
    ("convert moe o --dense-average", "--seed 0", "makes no experts"),
    ("convert moe o --dense-average", "--experts 8", "makes no experts"),
    ("plan moe --step-time-before 1 --step-time-after 2", "--device h100", "step times are given"),
    ("plan moe --step-time-before 1 --step-time-after 2", "--utilisation 0.468", "step times are given"),
    ("plan moe --step-time-before 1 --step-time-after 2", "--sequence-length 4096", "step times are given"),
    ("plan moe --step-time-before 1 --step-time-after 2", "--cluster nvlink4-ndr", "step times are given"),
    ("plan moe", "--gpus 8", "it requires --cluster"),
    ("plan moe", "--gpu-tokens 4096", "it requires --cluster"),
    ("plan moe --cluster nvlink4-ndr --gpu-tokens 4096", "--batch-tokens 4194304", "--gpu-tokens gives the tokens"),
    ("plan moe", "--micro-batch 1", "it requires --cluster"),
    ("plan moe", "--once-per-rank", "it requires --cluster"),
    ("plan moe --cluster nvlink4-ndr --gpus 8", "--data-parallel 1", "--gpus gives the number of ranks"),
    ("plan moe --cluster nvlink4-ndr", "--device-network-rate 1e9", "--cluster has the rates"),
    ("plan moe", "--threads 1", "it requires --measure"),
    ("plan moe", "--measure-device cpu", "it requires --measure"),
    ("plan moe", "--top-k 2", "the model has experts"),
    ("plan dense", "--device h100", "the model is dense"),
    ("plan dense", "--cluster nvlink4-ndr", "the model is dense"),
    ("plan dense", "--target-closure 0.9", "the model is dense"),
    ("score s t --merge --out o", "--batches 10", "a merge only reads"),
    ("score s t --merge --out o", "--threads 1", "a merge only reads"),
    ("score s t --merge --out o", "--device cpu", "a merge only reads"),
    ("score s t --merge --out o", "--max-memory 1GB", "a merge only reads"),
    ("eval moe --tasks q.jsonl", "--sequence-length 256", "no token files"),
    ("eval moe --tasks q.jsonl", "--batch 8", "no token files"),
    ("eval moe --tasks q.jsonl", "--max-tokens 0", "no token files"),
    ("eval moe --tasks q.jsonl", "--reset-attention", "no token files"),
    ("eval moe --tasks q.jsonl", "--against moe", "no token files"),
    ("verify moe moe", "--max-tokens 16384", "there is no --function"),
    ("verify moe moe", "--device cpu", "there is no --function"),
    ("verify moe moe", "--max-memory 1GB", "there is no --function"),
    (TRAIN + " --model.path moe", "--model.layers 4", "model.path"),
    (TRAIN + " --model.path moe", "--model.family glm4_moe", "model.path"),
    (SMALL, "--train.validation_tokens 65536", "data.validation is empty"),
    (SMALL, "--train.validate_every 1", "data.validation is empty"),
    (SMALL + " --schedule.kind cosine", "--schedule.anneal_share 0.1", "schedule.kind is cosine"),
    (SMALL + " --schedule.kind constant", "--schedule.min_lr_ratio 0.1", "schedule.kind is constant"),
    (SMALL, "--checkpoint.keep_last 2", "train.out"),
    (SMALL + " --balance.kind none", "--balance.aux_coef 0.01", "balancing is none"),
    (SMALL + " --balance.kind aux", "--balance.rate 0.001", "balancing is aux"),
    (SMALL + " --balance.kind aux", "--balance.recentre", "balancing is aux"),
    (SMALL, "--balance.aux_coef 0.01", "balancing is loss_free"),  # glm4_moe
    (SMALL, "--balance.form per_layer", "balancing is loss_free"),
    (SMALL + " --schedule.anneal_share 0", "--schedule.min_lr_ratio 0.1", "schedule.anneal_share is 0"),
    (SMALL + " --train.out o", "--checkpoint.keep_every 1", "checkpoint.every is 0"),
]
STAGES = [
    ('"select": "uniform"', '"max_duplicates": 3', "the rule 'uniform'"),
    ('"select": "uniform"', '"metric": "load"', "does not use scores"),
    ('"select": "uniform"', '"score_batches": 2', "does not use scores"),
    ('"score_batches": 1', '"temperature": 2.0', "does not sample"),
]


def run(arguments, world):
    return subprocess.run([BUILD / "coppice", *arguments], capture_output=True, text=True, timeout=120, cwd=world)


def refused(done, option, reason):
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert option in done.stderr and "no effect" in done.stderr and reason in done.stderr, done.stderr


@pytest.mark.parametrize("command, option, reason", CASES)
def test_options_without_effect_are_refused(world, command, option, reason):
    refused(run([*command.split(), *option.split()], world), option.split()[0].lstrip("-"), reason)
    assert not (world / "o").exists()


@pytest.mark.parametrize("others, option, reason", STAGES)
def test_keys_of_a_growth_without_effect_are_refused(world, others, option, reason):
    stage = '[{"at_step": 1, "experts": "2x", %s, %s}]' % (others, option)
    refused(run([*GROWTH.split(), stage], world), option.split('"')[1], reason)


def test_balancing_after_a_growth_is_refused_where_a_loss_balances(world):
    stage = '[{"at_step": 1, "experts": "2x", "select": "uniform", "balance_rate": 0.01, "balance_steps": 1}]'
    refused(run([*GROWTH.replace("--growth", "--balance.kind aux --growth").split(), stage], world), "balance_rate", "balancing is aux")


def test_a_settings_file_may_state_the_defaults(world):
    """That is what a run saves beside its output."""
    (world / "plan.toml").write_text('device = "h100"\nstep-time-before = 1.0\nstep-time-after = 2.0\n')
    done = run(["plan", "moe", "--config", "plan.toml"], world)
    assert done.returncode == 0, done.stderr
    (world / "plan.toml").write_text('device = "a100"\nstep-time-before = 1.0\nstep-time-after = 2.0\n')
    refused(run(["plan", "moe", "--config", "plan.toml"], world), "device", "step times are given")


def test_a_run_with_the_settings_that_another_saved(world):
    done = run([*SMALL.split(), "--train.out", "run"], world)
    assert done.returncode == 0, done.stderr
    done = run(["train", "--config", "run/config.toml", "--train.out", "again"], world)
    assert done.returncode == 0, done.stderr


def test_a_run_file_may_say_when_to_validate(world):
    (world / "run.toml").write_text("[train]\nvalidate_every = 1\n")
    done = run([*SMALL.split(), "--config", "run.toml"], world)
    assert done.returncode == 0, done.stderr


def test_a_flag_gives_a_default_back(world):
    """What a file says is taken back where it would have no effect."""
    (world / "run.toml").write_text("[schedule]\nanneal_share = 0.5\n")
    refused(run([*SMALL.split(), "--config", "run.toml", "--schedule.kind", "constant"], world), "schedule.anneal_share", "constant")
    done = run([*SMALL.split(), "--config", "run.toml", "--schedule.kind", "constant", "--schedule.anneal_share", "0.1"], world)
    assert done.returncode == 0, done.stderr
