"""`coppice expand` and `coppice verify` as a user meets them: what they print, and one clear sentence for every bad input."""

import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"


def coppice(*arguments, **options):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def digests(directory):
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.rglob("*") if f.is_file()}


def generate(directory, family, *sizes):
    subprocess.run([GENERATE, directory, family, "BF16", *sizes], check=True, timeout=120)
    return directory


@pytest.fixture
def model(tmp_path):
    """A generated model; afterwards it must be what it was, and no temporary may be left beside it."""
    directory = generate(tmp_path / "m", "glm4_moe")
    yield directory
    assert not list(tmp_path.glob(".*")), "a temporary was left"


def expect_failure(status, words, arguments, **options):
    """The command fails with one line that has all of `words`; nothing appears, nothing changes."""
    source, out = pathlib.Path(arguments[1]), pathlib.Path(arguments[2])
    before = digests(source) if source.is_dir() else None
    existed = out.exists()
    done = coppice(*arguments, **options)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("coppice: error: "), done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert out.exists() == existed
    if before is not None:
        assert digests(source) == before
    return done.stderr


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def write_scores(path, model, value=1.0, **override):
    seen = json.loads(coppice("inspect", model, "--json").stdout)
    config = json.loads((model / "config.json").read_text())
    layers = range(config["first_k_dense_replace"], config["num_hidden_layers"])
    part = {"sum": {str(layer): [value, 2.0, 3.0, 4.0] for layer in layers}, "sum_sq": {}}
    scores = {"coppice_scores": 1,
              "model": {"digest": seen["digest"], "model_type": "glm4_moe", "layers": config["num_hidden_layers"], "experts": 4, **override},
              "tokens": {"digest": "0" * 64, "seen": 64, "batch_tokens": 32, "batches": 2},
              "metrics": {"gradient_squared": {"fc1": part, "fc2": part}}}
    path.write_text(json.dumps(scores))
    return path


# What it does.

def test_says_what_it_wrote_and_whether_it_is_exact(model, tmp_path):
    done = coppice("expand", model, tmp_path / "out", "--experts", "3x")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("wrote ") and "4 -> 12 experts" in first and "MiB" in first
    assert second.startswith("Not exact: ")
    assert coppice("verify", model, tmp_path / "out").returncode == 0


def test_json_is_one_object(model, tmp_path):
    done = coppice("expand", model, tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert told["experts"] == [4, 8] and told["exact"] is False
    weights = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    assert 0 < weights - told["bytes_written"] < 1 << 16  # the header
    assert told["weight_bytes"][1] == told["bytes_written"]


def test_dry_run_prints_the_plan_and_writes_nothing(model, tmp_path):
    done = coppice("expand", model, tmp_path / "out", "--experts", "1.5x", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "4 -> 6 experts in 2 of 2 layers, 2 per token as before" in done.stdout
    assert "layers 0-1: 1 copy of each of 0-1" in done.stdout
    assert "Not exact" in done.stdout
    plan = json.loads(coppice("expand", model, tmp_path / "out", "--dry-run", "--json").stdout)["plan"]
    assert plan
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_scores_choose_the_parents(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model)
    done = coppice("expand", model, tmp_path / "out", "--experts", "5", "--scores", scores)
    assert done.returncode == 0, done.stderr
    step = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][0]
    assert step["parents"]["1"] == [0, 1, 2, 3, 3]
    assert step["settings"]["select"] == "waterfill" and step["settings"]["experts"] == "5"


def test_resolved_settings_come_from_file_and_flags(model, tmp_path):
    (tmp_path / "run.toml").write_text('experts = "6"\nseed = 3\nexpert-init = "copy_noise"\n')
    done = coppice("expand", model, tmp_path / "out", "--config", tmp_path / "run.toml", "--seed", "4")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][0]["settings"]
    assert (settings["experts"], settings["seed"], settings["expert-init"]) == ("6", 4, "copy_noise")
    assert "threads" not in settings


@pytest.mark.parametrize("threads", [2, 4])
def test_bytes_do_not_depend_on_threads(model, tmp_path, threads):
    for name, count in [("one", 1), ("more", threads)]:
        done = coppice("expand", model, tmp_path / name, "--expert-init", "drop_units", "--threads", count, "--max-shard-bytes", "20KB")
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "one") == digests(tmp_path / "more")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 3


def test_verify_names_what_changed_and_fails(model, tmp_path):
    coppice("expand", model, tmp_path / "out")
    edit(tmp_path / "out" / "config.json", lambda config: config.update(rms_norm_eps=0.5))
    done = coppice("verify", model, tmp_path / "out")
    assert done.returncode == 1
    assert "problem: config.json: 'rms_norm_eps' is 0.5" in done.stdout
    told = coppice("verify", model, tmp_path / "out", "--json")
    assert told.returncode == 1 and json.loads(told.stdout)["ok"] is False


# Bad input.

@pytest.mark.parametrize("experts, words", [("3", ["3", "4"]), ("4", ["4"]), ("1x", ["1x"]), ("0.5x", ["0.5x"]), ("1.3x", ["1.3x"]),
                                            ("many", ["many"]), ("-8", ["-8"])])
def test_expert_count_must_grow(model, tmp_path, experts, words):
    expect_failure(2, words, ["expand", model, tmp_path / "out", f"--experts={experts}"])


@pytest.mark.parametrize("option, value, nearest", [
    ("--expert-init", "copy_nose", "copy_noise"), ("--router-init", "bias_onli", "bias_only"), ("--select", "greeedy", "greedy"),
    ("--metric", "gradient_square", "gradient_squared"), ("--optimizer-state", "rest", "reset"), ("--order", "sibling", "siblings"),
    ("--layer-selection", "both_avrage", "both_average"), ("--balance-bias", "zeero", "zero"),
    ("--max-shard-bytes", "5 GB", "such as 5GB"), ("--max-shard-bytes", "0", "such as 5GB")])
def test_unknown_names_get_the_nearest(model, tmp_path, option, value, nearest):
    expect_failure(2, [value, nearest], ["expand", model, tmp_path / "out", option, value])


def test_unknown_options_get_the_nearest(model, tmp_path):
    expect_failure(2, ["--thread", "--threads"], ["expand", model, tmp_path / "out", "--thread", "2"])
    expect_failure(2, ["lamda", "lambda"], ["expand", model, tmp_path / "out", "--expert-init", "copy_noise:lamda=1"])
    expect_failure(2, ["threads: 0"], ["expand", model, tmp_path / "out", "--threads", "0"])


@pytest.mark.parametrize("option, value, reason", [
    ("--temperature", "2", "uniform"), ("--metric", "load", "does not look at scores"), ("--layer-selection", "fc1_only", "does not look at scores"),
    ("--optimizer-state", "reset", "no trainer/")])
def test_settings_without_effect(model, tmp_path, option, value, reason):
    expect_failure(2, [option, "no effect", reason], ["expand", model, tmp_path / "out", option, value])


def test_output_that_exists(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    expect_failure(2, ["out", "exists"], ["expand", model, tmp_path / "out"])
    assert (tmp_path / "out" / "precious").read_text() == "kept"


def test_output_inside_the_source(model):
    expect_failure(2, ["inside"], ["expand", model, model / "grown"])


def test_missing_model(tmp_path):
    expect_failure(3, ["nowhere"], ["expand", tmp_path / "nowhere", tmp_path / "out"])


def test_missing_configuration(model, tmp_path):
    (model / "config.json").unlink()
    expect_failure(3, ["config.json"], ["expand", model, tmp_path / "out"])


def test_truncated_shard(model, tmp_path):
    shard = sorted(model.glob("*.safetensors"))[-1]
    os.truncate(shard, shard.stat().st_size - 7)
    expect_failure(3, [shard.name], ["expand", model, tmp_path / "out"])


@pytest.mark.parametrize("name", ["config.json", "coppice.json"])
def test_broken_json(model, tmp_path, name):
    (model / name).write_text('{"hidden_size": 64,, }')
    expect_failure(3, [name], ["expand", model, tmp_path / "out"])


def test_unknown_family(model, tmp_path):
    edit(model / "config.json", lambda config: config.update(model_type="glm4_mow"))
    expect_failure(3, ["glm4_mow", "glm4_moe"], ["expand", model, tmp_path / "out"])


def test_dense_model(tmp_path):
    expect_failure(3, ["llama", "no experts"], ["expand", generate(tmp_path / "m", "llama"), tmp_path / "out"])


def test_scores_of_another_model(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model, digest="ab" * 32)
    expect_failure(3, ["scores.json", "another model"], ["expand", model, tmp_path / "out", "--scores", scores])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_scores_that_are_no_numbers(model, tmp_path, value):
    scores = write_scores(tmp_path / "scores.json", model, value=value)
    expect_failure(3, ["scores.json"], ["expand", model, tmp_path / "out", "--scores", scores])


def test_optimizer_state_of_torch(model, tmp_path):
    (model / "optimizer.pt").write_bytes(b"pickle")
    expect_failure(3, ["optimizer.pt", "move it away"], ["expand", model, tmp_path / "out"])


def test_file_size_limit(model, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    expect_failure(4, ["model.safetensors"], ["expand", model, tmp_path / "out"], preexec_fn=limit)


def test_full_disk(model, tmp_path):
    """A file system of 1 MiB in a mount namespace of its own: too little for the model, so nothing is begun."""
    large = generate(tmp_path / "large", "mixtral", "expert_width=512", "num_experts=8")
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$1" && "$2" expand "$3" "$1/out"; status=$?; ls -A "$1"; exit $status'
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "mount", "-t", "tmpfs", "none", small], capture_output=True).returncode != 0:
        pytest.skip("this user may not make a mount namespace")
    done = subprocess.run([unshare, "-m", "sh", "-c", script, "sh", small, COPPICE, large], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "free" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == "", "something was left"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_cleanly(tmp_path, number, status):
    source = generate(tmp_path / "m", "mixtral", "model_dim=512", "expert_width=1024", "num_experts=8")
    before = digests(source)
    command = [COPPICE, "expand", source, tmp_path / "out", "--experts", "8x", "--expert-init", "copy_noise", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.tmp-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert out == "" and "stopped by a signal" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert digests(source) == before
