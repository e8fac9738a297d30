"""`coppice train`, `eval` and `score` as a user meets them: files, exit codes, Ctrl-C, a full disk."""

import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"

MODEL = ["--model.vocab_size", 64, "--model.dim", 32, "--model.layers", 2, "--model.heads", 2, "--model.kv_heads", 1,
         "--model.head_dim", 16, "--model.experts", 4, "--model.expert_width", 16, "--model.dense_width", 32,
         "--model.first_dense_layers", 0, "--data.sequence_length", 16, "--train.batch_tokens", 128,
         "--train.dtype", "f32", "--train.threads", 1, "--schedule.warmup", 0]  # too little work for two threads


def coppice(*arguments, **settings):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120, **settings)


def write_text(prefix, count, vocabulary=64, seed=1, documents=1):
    return write_tokens(prefix, numpy.cumsum(numpy.random.default_rng(seed).integers(0, 3, count)) % vocabulary, documents)


@pytest.fixture
def data(tmp_path):
    write_text(tmp_path / "train", 4000)
    write_text(tmp_path / "val", 400, seed=2)
    return tmp_path


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in lines_of(run) if "loss" in line}


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_prints_one_json_object(data):
    done = coppice("train", *MODEL, "--data.train", data / "train", "--data.validation", data / "val", "--train.steps", 20,
                   "--train.out", data / "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["last_step"] == 20 and result["tokens_seen"] == 20 * 128
    assert result["tokens_per_s"] > 0 and result["seconds_per_step"] > 0 and result["peak_rss_bytes"] > 1e6
    assert 0 < result["loss"] < math.log(64) + 0.5 and 0 < result["validation_loss"]["val"]
    assert pathlib.Path(result["checkpoint"]).name == "step-00000020"
    evaluated = json.loads(coppice("eval", result["checkpoint"], "--tokens", data / "val", "--sequence-length", 16,
                                   "--threads", 1, "--json").stdout)
    assert evaluated["loss"] == pytest.approx(result["validation_loss"]["val"], rel=1e-6)
    assert evaluated["perplexity"] == pytest.approx(math.exp(evaluated["loss"]))


def test_says_which_device_it_takes_and_refuses_others(data):
    run = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 2]
    done = coppice(*run, "--train.device", "cpu", "--train.out", data / "run")
    assert done.returncode == 0 and "training on cpu" in done.stderr, done.stderr
    assert 'device = "cpu"' in (data / "run" / "config.toml").read_text()
    for name, word in (("gpu", "unknown"), ("cuda:99", "cuda"), ("meta", "no meta device")):
        refused = coppice(*run, "--train.device", name)
        assert refused.returncode == 2 and f"train.device: '{name}'" in refused.stderr and word in refused.stderr, refused.stderr
        assert "wanted auto, cpu, cuda or cuda:N" in refused.stderr


def test_resumes_on_a_device_that_is_named_otherwise(data):
    run = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 4, "--train.out", data / "run"]
    assert coppice(*run, "--train.device", "cpu", "--train.stop_at", 2).returncode == 0
    resumed = coppice(*run, "--train.device", "cpu:0", "--train.resume")
    assert resumed.returncode == 0, resumed.stderr


def test_documents_apart_are_evaluated_as_they_are_trained_on(data):
    documents = write_text(data / "documents", 400, documents=50)
    done = coppice("train", *MODEL, "--data.train", documents, "--data.validation", documents, "--data.reset_attention",
                   "--train.steps", 4, "--train.out", data / "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    evaluate = ["eval", result["checkpoint"], "--tokens", documents, "--sequence-length", 16, "--threads", 1, "--json"]
    apart, across = (json.loads(coppice(*evaluate, *more).stdout)["loss"] for more in (["--reset-attention"], []))
    assert apart == pytest.approx(result["validation_loss"]["documents"], rel=1e-6)
    assert abs(across - apart) > 1e-5


def test_the_saved_settings_make_the_same_run(data):
    first = coppice("train", *MODEL, "--data.train", data / "train", "--train.steps", 6, "--train.out", data / "one",
                    "--optimizer.lr", 2e-3)
    assert first.returncode == 0, first.stderr
    second = coppice("train", "--config", data / "one" / "config.toml", "--train.out", data / "two")
    assert second.returncode == 0, second.stderr
    assert losses(data / "one") == losses(data / "two")


def test_events_are_what_tensorboard_reads(data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    arguments = ["train", *MODEL, "--data.train", data / "train", "--data.validation", data / "val", "--train.steps", 8,
                 "--checkpoint.every", 2]
    assert coppice(*arguments, "--train.out", data / "run", "--train.stop_at", 6).returncode == 0
    shutil.rmtree(data / "run" / "checkpoints" / "step-00000006")  # as if the run had died with its newest at step 4
    time.sleep(1.1)  # event files are ordered by the second in their name
    resumed = coppice(*arguments, "--train.out", data / "run", "--train.resume")
    assert resumed.returncode == 0, resumed.stderr
    reader = EventAccumulator(str(data / "run"))
    reader.Reload()
    tags = set(reader.Tags()["scalars"])
    assert {"loss", "lr", "grad_norm", "tokens_seen", "tokens_per_s", "maxvio/mean", "layer/1/maxvio",
            "validation/val"} <= tags
    read = {event.step: event.value for event in reader.Scalars("loss")}
    assert read == pytest.approx(losses(data / "run"), rel=1e-6)
    assert sorted(read) == list(range(1, 9))


def test_ctrl_c_writes_a_checkpoint_from_which_the_run_goes_on(data):
    arguments = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 4000]
    running = subprocess.Popen([COPPICE, *map(str, arguments), "--train.out", data / "run"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (data / "run" / "metrics.jsonl").exists() or len(lines_of_running(data / "run")) < 3:
        assert time.monotonic() < deadline and running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    [checkpoint] = names(data / "run")
    step = int(checkpoint.removeprefix("step-"))
    events = [line["event"] for line in lines_of(data / "run") if "event" in line]
    assert events == ["checkpoint", "interrupt"] and max(losses(data / "run")) == step

    resumed = coppice(*arguments, "--train.out", data / "run", "--train.resume", "--train.stop_at", step + 5)
    assert resumed.returncode == 0, resumed.stderr
    whole = coppice(*arguments, "--train.out", data / "whole", "--train.stop_at", step + 5)
    assert whole.returncode == 0, whole.stderr
    assert losses(data / "run") == losses(data / "whole")


def test_a_signal_ends_a_validation_with_the_steps_before_it(data, tmp_path):
    write_text(tmp_path / "long", 1_000_000)
    arguments = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 4000]
    validation = ["--data.validation", tmp_path / "long", "--train.validation_tokens", 10**9, "--train.validate_every",
                  3, "--train.micro_batch", 1]
    running = subprocess.Popen([COPPICE, *map(str, [*arguments, *validation, "--train.out", data / "run"])],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (data / "run" / "metrics.jsonl").exists() or len(lines_of_running(data / "run")) < 3:
        assert time.monotonic() < deadline and running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143, errors
    assert names(data / "run") == ["step-00000003"]
    assert max(losses(data / "run")) == 3, "no step is trained after the signal"
    events = [line["event"] for line in lines_of(data / "run") if "event" in line]
    assert events == ["checkpoint", "interrupt"]


def lines_of_running(run):
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def test_a_killed_run_resumes_from_its_newest_complete_checkpoint(data):
    arguments = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 4000, "--checkpoint.every", 5]
    running = subprocess.Popen([COPPICE, *map(str, arguments), "--train.out", data / "run"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (data / "run" / "checkpoints").exists() or not any(n.startswith("step-") for n in names(data / "run")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.02)
    running.kill()
    running.wait()
    newest = max(int(name.removeprefix("step-")) for name in names(data / "run") if name.startswith("step-"))
    resumed = coppice(*arguments, "--train.out", data / "run", "--train.resume", "--train.stop_at", newest + 7)
    assert resumed.returncode == 0, resumed.stderr
    whole = coppice(*arguments, "--train.out", data / "whole", "--train.stop_at", newest + 7)
    assert whole.returncode == 0, whole.stderr
    assert losses(data / "run") == losses(data / "whole")
    assert not [name for name in names(data / "run") if name.startswith(".")]


GROWTH = ["--growth", json.dumps([
    {"at_step": 8, "experts": "7", "score_batches": 3, "expert_init": "copy_noise"},
    {"at_step": 16, "experts": "2x", "select": "uniform", "optimizer_state": "reset", "rewarmup": 3}]),
    "--handover.policy", "release", "--handover.steps", 5]


def test_a_run_killed_again_and_again_gives_the_losses_of_the_undisturbed_one_across_growths(data):
    arguments = ["train", *MODEL, *GROWTH, "--data.train", data / "train", "--train.steps", 26, "--checkpoint.every", 2]
    whole = coppice(*arguments, "--train.out", data / "whole")
    assert whole.returncode == 0, whole.stderr
    random = numpy.random.default_rng(7)
    kills = 0
    for _ in range(200):
        before = names_if_any(data / "run")
        resume = ["--train.resume"] if any(n.startswith("step-") for n in before) else []
        running = subprocess.Popen([COPPICE, *map(str, arguments), "--train.out", data / "run", *resume],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while running.poll() is None and names_if_any(data / "run") == before:
            time.sleep(0.002)
        time.sleep(float(random.uniform(0, 0.03 * (1 + kills / 10))))  # a loaded machine gets further in the end
        if running.poll() is not None:
            break
        running.kill()
        running.communicate()
        kills += 1
    assert running.returncode == 0, running.communicate()[1]
    assert kills >= 2 and losses(data / "run") == losses(data / "whole") and len(losses(data / "run")) == 26
    for name in ["model.safetensors", "trainer/optimizer-00001-of-00001.safetensors", "config.json", "coppice.json"]:
        assert ((data / "run" / "checkpoints" / "step-00000026" / name).read_bytes()
                == (data / "whole" / "checkpoints" / "step-00000026" / name).read_bytes()), name
    assert not [name for name in names(data / "run") if name.startswith(".")]


def names_if_any(run):
    return names(run) if (run / "checkpoints").exists() else []


def test_eval_tells_the_losses_of_both_routings_in_the_middle_of_a_handover(data):
    growth = [{"at_step": 8, "experts": "2x", "select": "uniform", "expert_init": "copy_noise"}]
    done = coppice("train", *MODEL, "--growth", json.dumps(growth), "--handover.policy", "keep", "--data.train", data / "train",
                   "--data.validation", data / "val", "--train.steps", 12, "--train.out", data / "run")
    assert done.returncode == 0, done.stderr
    last = next(line for line in lines_of(data / "run") if "validation_lineage/val" in line and line["step"] == 12)
    model = data / "run" / "checkpoints" / "step-00000012"
    told = coppice("eval", model, "--tokens", data / "val", "--sequence-length", 16, "--json")
    assert told.returncode == 0, told.stderr
    file = json.loads(told.stdout)["files"][0]
    assert file["loss"] == pytest.approx(last["validation/val"], abs=1e-5)
    assert file["loss_by_lineage"] == pytest.approx(last["validation_lineage/val"], abs=1e-5)
    assert abs(file["loss_by_lineage"] - file["loss"]) > 1e-4
    assert "lineage-unique" in coppice("eval", model, "--tokens", data / "val", "--sequence-length", 16).stdout
    before = coppice("eval", data / "run" / "checkpoints" / "step-00000008", "--tokens", data / "val", "--sequence-length", 16, "--json")
    assert "loss_by_lineage" not in json.loads(before.stdout)["files"][0], "before the growth"


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_eval_routes_the_tokens_by_lineage_that_the_run_does(data, seed):
    growth = [{"at_step": 4, "experts": "2x", "select": "uniform", "expert_init": "copy_noise"}]
    done = coppice("train", *MODEL, "--growth", json.dumps(growth), "--handover.policy", "release", "--handover.steps", 8, "--train.seed", seed,
                   "--data.train", data / "train", "--data.validation", data / "val", "--train.steps", 8, "--train.out", data / "run")
    assert done.returncode == 0, done.stderr
    last = next(line for line in lines_of(data / "run") if "validation_lineage/val" in line and line["step"] == 8)
    model = data / "run" / "checkpoints" / "step-00000008"
    assert json.loads((model / "coppice.json").read_text())["seed"] == seed
    batch = MODEL[MODEL.index("--train.micro_batch") + 1] if "--train.micro_batch" in MODEL else 8
    told = coppice("eval", model, "--tokens", data / "val", "--sequence-length", 16, "--batch", batch, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["files"][0]["loss_by_lineage"] == last["validation_lineage/val"]


def test_what_a_growth_wrote_makes_the_same_model_through_expand(data):
    arguments = ["train", *MODEL, *GROWTH, "--data.train", data / "train", "--train.steps", 26]
    assert coppice(*arguments, "--train.out", data / "run", "--train.stop_at", 12).returncode == 0
    before, record = data / "run" / "checkpoints" / "step-00000008", data / "run" / "growth-step-00000008"
    done = coppice("expand", before, data / "grown", "--plan", record / "plan.toml", "--json")
    assert done.returncode == 0, done.stderr
    scored = coppice("expand", before, data / "scored", "--scores", record / "scores.json", "--experts", 7, "--dry-run")
    assert scored.returncode == 0, scored.stderr
    inspected = coppice("inspect", data / "run" / "checkpoints" / "step-00000012")
    assert "lineage-unique routing (share 0.2)" in inspected.stderr
    verified = coppice("verify", before, data / "grown")
    assert verified.returncode == 0, verified.stdout


def overwrite(path, content):
    """In place: never seen empty."""
    with path.open("r+b") as file:
        file.write(content)


def test_a_token_file_damaged_in_mid_run_is_named_and_loses_nothing(data):
    arguments = ["train", *MODEL, "--data.train", data / "train", "--train.steps", 4000, "--checkpoint.every", 20]
    for damage, said in [(lambda path: overwrite(path, b"\xff\xff" * 4000), "65535"),
                         (lambda path: os.truncate(path, 100), "truncated from 8000 to 100 bytes")]:
        write_text(data / "train", 4000)
        shutil.rmtree(data / "run", ignore_errors=True)
        running = subprocess.Popen([COPPICE, *map(str, arguments), "--train.out", data / "run"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not any(n.startswith("step-") for n in names_if_any(data / "run")):
            assert time.monotonic() < deadline and running.poll() is None, running.stderr.read()
            time.sleep(0.02)
        damage(data / "train.bin")
        _, errors = running.communicate(timeout=60)
        assert running.returncode in (3, 4) and said in errors and "train.bin" in errors.replace("train:", "train.bin:"), errors
        assert any(n.startswith("step-") for n in names(data / "run"))
        assert "error" in [line.get("event") for line in lines_of(data / "run")]


def test_an_exploding_gradient_ends_the_run_before_it_moves_a_weight(data):
    done = coppice("train", *MODEL, "--data.train", data / "train", "--train.steps", 400, "--train.out", data / "run",
                   "--checkpoint.every", 10, "--optimizer.spike_limit", 1.0001)
    assert done.returncode == 3 and "gradient norm" in done.stderr and "spike_limit" in done.stderr, done.stderr
    events = [line for line in lines_of(data / "run") if line.get("event") == "error"]
    assert len(events) == 1 and "gradient norm" in events[0]["message"]
    assert names(data / "run"), "the last good checkpoint is kept"


def test_a_dead_expert_is_said_once(data):
    model = list(MODEL)
    model[model.index("--model.experts") + 1] = 64
    done = coppice("train", *model, "--data.train", data / "train", "--train.steps", 30, "--train.out", data / "run",
                   "--model.top_k", 1, "--balance.kind", "none", "--balance.dead_after", 5)
    assert done.returncode == 0, done.stderr
    dead = [line for line in lines_of(data / "run") if line.get("event") == "dead_experts"]
    named = [(line["layer"], expert) for line in dead for expert in line["experts"]]
    assert named and "experts without a token for 5 steps" in done.stderr
    shares = [line["dead_share/mean"] for line in lines_of(data / "run") if "dead_share/mean" in line]
    assert max(shares) > 0


def test_a_full_disk_is_an_error_that_loses_nothing(data):
    """A tmpfs of 1 MiB in a mount namespace of its own."""
    disk = data / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1" && shift && "$@"; status=$?; find "$0" | sort; exit $status'
    inside = ["unshare", "--mount", "--map-root-user", "bash", "-c", script, disk, disk]
    probe = subprocess.run([*map(str, inside), "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no mount namespace here: {probe.stderr.strip()}")
    command = [COPPICE, "train", *MODEL, "--data.train", data / "train", "--train.steps", 40, "--train.out", disk / "run",
               "--checkpoint.every", 1, "--checkpoint.keep_last", 40]
    done = subprocess.run([*map(str, inside), *map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    checkpoints = [line for line in done.stdout.splitlines() if line.endswith(tuple(f"step-{n:08d}" for n in range(1, 41)))]
    assert 1 <= len(checkpoints) < 40
    assert "/." not in done.stdout, done.stdout
    assert done.stderr.count("free") + done.stderr.count("space") >= 1


@pytest.mark.parametrize("arguments, status, said", [
    (["train"], 2, "data.train"),
    (["train", "--train.stepps", 3], 2, "train.steps"),
    (["train", *MODEL, "--data.train", "missing", "--train.steps", 3], 3, "missing"),
    (["eval", "missing", "--tokens", "missing"], 3, "missing"),
    (["score", "missing", "missing", "--out", "scores.json"], 3, "missing"),
])
def test_bad_usage_is_one_clear_sentence(tmp_path, arguments, status, said):
    done = coppice(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stderr and "terminate" not in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_token_file_of_another_vocabulary_is_refused(data):
    write_text(data / "large", 4000, vocabulary=1000)
    done = coppice("train", *MODEL, "--data.train", data / "large", "--train.steps", 3, "--train.out", data / "run")
    assert done.returncode == 3 and "large" in done.stderr
    assert not (data / "run").exists()
