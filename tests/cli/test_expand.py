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


def tensors(directory):
    """Dtype, shape and bytes by name, however they are spread over files."""
    found = {}
    for file in directory.glob("*.safetensors"):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, tensor in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                found[name] = (tensor["dtype"], tensor["shape"], data[start + begin:start + end])
    return found


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
    assert "# glm4_moe: 4 -> 6 experts in 2 of 2 layers, 2 per token (unchanged)" in done.stdout
    assert "layers 0-1: 1 copy of each of 0-1" in done.stdout
    assert "Not exact" in done.stdout
    plan = json.loads(coppice("expand", model, tmp_path / "out", "--dry-run", "--json").stdout)["plan"]
    assert plan
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


# Plans.

def test_a_dry_run_is_a_plan_that_gives_the_same_bytes(model, tmp_path):
    options = ["--experts", "1.5x", "--expert-init", "drop_units:ratio=0.25", "--seed", "5", "--order", "siblings"]
    plan = tmp_path / "plan.toml"
    plan.write_text(coppice("expand", model, tmp_path / "direct", *options, "--dry-run").stdout)
    assert plan.read_text().startswith("# glm4_moe: 4 -> 6 experts")
    for out, arguments in [("direct", options), ("planned", ["--plan", plan])]:
        done = coppice("expand", model, tmp_path / out, *arguments)
        assert done.returncode == 0, done.stderr
    direct, planned = (digests(tmp_path / out) for out in ("direct", "planned"))
    assert direct.pop("coppice.json") and planned.pop("coppice.json")  # their settings say how they were made
    assert direct == planned
    steps = [json.loads((tmp_path / out / "coppice.json").read_text())["steps"] for out in ("direct", "planned")]
    assert steps[0][0]["parents"] == steps[1][0]["parents"] and steps[0][0]["methods"]["expert_init"] == steps[1][0]["methods"]["expert_init"]


def test_an_edited_plan_has_methods_and_parents_by_layer(model, tmp_path):
    plan = tmp_path / "plan.toml"
    text = coppice("expand", model, tmp_path / "out", "--experts", "6", "--dry-run").stdout
    assert "1 = [0, 1, 2, 3, 0, 1]" in text
    plan.write_text(text.replace("1 = [0, 1, 2, 3, 0, 1]", "1 = [3, 3, 3, 2, 1, 0]")
                    + '\n[layer_methods.0]\nexpert_init = "scaled_copy:factor=0.5"\nrouter_init = "copy"\n')
    told = coppice("expand", model, tmp_path / "out", "--plan", plan, "--dry-run").stdout
    assert "layer 0: expert-init scaled_copy:factor=0.5" in told and "layer 1: 2 copies of 3" in told
    done = coppice("expand", model, tmp_path / "out", "--plan", plan)
    assert done.returncode == 0, done.stderr
    assert "scaled_copy" in done.stdout
    step = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][0]
    assert step["parents"]["1"] == [3, 3, 3, 2, 1, 0]
    assert step["methods"]["layers"] == {"0": {"expert_init": "scaled_copy:factor=0.5", "router_init": "copy"}}
    assert coppice("inspect", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("old, new, status, words", [
    ("1 = [0, 1, 2, 3, 0, 1]", "1 = [0, 1, 2, 3, 0]", 3, ["plan.toml", "layer 1", "5 experts; wanted 6", "the number of every layer"]),
    ("1 = [0, 1, 2, 3, 0, 1]", "1 = [0, 1, 2, 3, 0, 4]", 3, ["plan.toml", "layer 1, expert 5", "is 4"]),
    ("1 = [0, 1, 2, 3, 0, 1]", "1 = [0, 1, 2, 2, 0, 1]", 3, ["plan.toml", "layer 1", "original of expert 3"]),
    ("1 = [0, 1, 2, 3, 0, 1]", "", 2, ["no parents for layer 1"]),
    ("1 = [0, 1, 2, 3, 0, 1]", "1 = [0, 1, 2, 3, 0, 1]\n9 = [0, 1, 2, 3, 0, 1]", 2, ["layer 9"]),
    ('expert_init = "copy"', 'expert_init = "cope"', 2, ["cope", "copy"]),
    ('expert_init = "copy"', 'experts_init = "copy"', 3, ["experts_init", "expert_init"]),
    ("experts = [4, 6]", "experts = [4, 4]", 3, ["experts"]), ("coppice_plan = 1", "coppice_plan = 2", 3, ["coppice_plan"]),
    ("seed = 0", "seed = 1979-05-27", 3, ["plan.toml", "line"]), ("[methods]", "[methods", 3, ["plan.toml", "line"])])
def test_plans_that_do_not_fit(model, tmp_path, old, new, status, words):
    text = coppice("expand", model, tmp_path / "out", "--experts", "6", "--dry-run").stdout
    assert old in text
    (tmp_path / "plan.toml").write_text(text.replace(old, new))
    expect_failure(status, words, ["expand", model, tmp_path / "out", "--plan", tmp_path / "plan.toml"])


# What follows from the model is not a plan's to say, and what has no effect is an error.
@pytest.mark.parametrize("options, line, words", [
    (["--split", "2"], "down_factor = 5.0", ["'down_factor': is computed from the model"]),
    (["--top-k", "scale"], "selection_bias_factor = 7.5", ["'selection_bias_factor': is computed from the model"]),
    (["--experts", "2x"], "down_bias_factor = 1.0", ["'down_bias_factor': is computed from the model"]),
    (["--experts", "2x"], "shift = -100", ["'shift'"])])
def test_a_plan_holds_nothing_that_follows(model, tmp_path, options, line, words):
    text = coppice("expand", model, tmp_path / "out", *options, "--dry-run").stdout
    assert "factor =" not in text.replace("top_k_factor =", "")
    (tmp_path / "plan.toml").write_text(text.replace("[methods]", line + "\n\n[methods]"))
    expect_failure(3, ["plan.toml", *words], ["expand", model, tmp_path / "out", "--plan", tmp_path / "plan.toml"])


def test_an_optimizer_state_without_optimizer_is_no_plan(model, tmp_path):
    text = coppice("expand", model, tmp_path / "out", "--dry-run").stdout
    (tmp_path / "plan.toml").write_text(text.replace('optimizer_state = "copy"', 'optimizer_state = "share"'))
    expect_failure(2, ["plan.toml", "optimizer_state", "no trainer/"], ["expand", model, tmp_path / "out", "--plan", tmp_path / "plan.toml"])


def test_a_plan_of_another_model(model, tmp_path):
    other = generate(tmp_path / "other", "glm4_moe", "num_experts=6")
    (tmp_path / "plan.toml").write_text(coppice("expand", other, tmp_path / "out", "--dry-run").stdout)
    expect_failure(2, ["starts from 6 experts", "has 4"], ["expand", model, tmp_path / "out", "--plan", tmp_path / "plan.toml"])


@pytest.mark.parametrize("option", [["--experts", "2x"], ["--seed", "1"], ["--expert-init", "copy"], ["--recipe", "paper"], ["--top-k", "scale"]])
def test_a_plan_says_it_all(model, tmp_path, option):
    (tmp_path / "plan.toml").write_text(coppice("expand", model, tmp_path / "out", "--dry-run").stdout)
    expect_failure(2, [option[0], "no effect", "plan file"], ["expand", model, tmp_path / "out", "--plan", tmp_path / "plan.toml", *option])
    expect_failure(2, [option[0], "no effect", "coppice.json"], ["expand", model, tmp_path / "out", "--undo", *option])


# Undo, recipes, top-K and parts.

def test_undo_gives_the_model_before(model, tmp_path):
    assert coppice("expand", model, tmp_path / "out", "--expert-init", "copy_noise", "--order", "siblings").returncode == 0
    told = coppice("expand", tmp_path / "out", tmp_path / "back", "--undo", "--dry-run")
    assert told.returncode == 0 and "8 -> 4 experts" in told.stdout, told.stderr
    done = coppice("expand", tmp_path / "out", tmp_path / "back", "--undo")
    assert done.returncode == 0, done.stderr
    assert "8 -> 4 experts" in done.stdout and "equal those before the expansion" in done.stdout
    assert "Differences from" not in done.stdout
    assert tensors(model) == tensors(tmp_path / "back")
    assert json.loads((model / "config.json").read_text()) == json.loads((tmp_path / "back" / "config.json").read_text())
    assert not (tmp_path / "back" / "coppice.json").exists()


def test_a_model_in_mid_handover_is_warned_of(model, tmp_path):
    coppice("expand", model, tmp_path / "once", "--experts", "2x", check=True)
    lineage = json.loads((tmp_path / "once" / "coppice.json").read_text()) | {"routing": "lineage_unique", "share": 0.5}
    (tmp_path / "once" / "coppice.json").write_text(json.dumps(lineage))
    for name, options in {"again": ["--experts", "2x"], "back": ["--undo"]}.items():
        done = coppice("expand", tmp_path / "once", tmp_path / name, *options)
        assert done.returncode == 0 and "lineage-unique routing (share 0.5)" in done.stderr and "plain top-K" in done.stderr
        lineage = tmp_path / name / "coppice.json"  # the first growth taken back leaves no lineage at all
        after = json.loads(lineage.read_text()) if lineage.exists() else {}
        assert "routing" not in after and "share" not in after


def test_undo_without_an_expansion(model, tmp_path):
    expect_failure(2, ["undo", "coppice.json"], ["expand", model, tmp_path / "out", "--undo"])


def test_the_papers_recipe(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model)
    done = coppice("expand", model, tmp_path / "out", "--recipe", "paper", "--scores", scores, "--experts", "2x")
    assert done.returncode == 0, done.stderr
    step = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][0]
    assert step["parents"]["1"] == [0, 1, 2, 3, 2, 3, 3, 3]  # the best 3 times, the next what is left
    assert step["methods"]["router_init"].startswith("bias_only:delta=0.001,") and "recipe" not in step["settings"]
    expect_failure(2, ["greedy", "scores"], ["expand", model, tmp_path / "no", "--recipe", "paper"])
    expect_failure(2, ["papers", "paper"], ["expand", model, tmp_path / "no", "--recipe", "papers"])


def test_the_papers_recipe_without_a_bias_perturbs_rows(tmp_path):
    mixtral = generate(tmp_path / "m", "mixtral")
    done = coppice("expand", mixtral, tmp_path / "out", "--recipe", "paper", "--select", "uniform", "--dry-run")
    assert done.returncode == 0, done.stderr  # what the user sets goes before; what then has no effect is left out
    assert "select uniform" in done.stdout and "router-init perturb_new_only" in done.stdout


def test_top_k_grows_with_the_experts(model, tmp_path):
    done = coppice("expand", model, tmp_path / "out", "--experts", "3x", "--top-k", "scale", "--router-init", "copy")
    assert done.returncode == 0 and "Exact up to rounding" in done.stdout, done.stderr
    before, after = (json.loads((d / "config.json").read_text()) for d in (model, tmp_path / "out"))
    assert after["num_experts_per_tok"] == 3 * before["num_experts_per_tok"]
    assert coppice("verify", model, tmp_path / "out").returncode == 0
    expect_failure(2, ["scal", "scale"], ["expand", model, tmp_path / "no", "--top-k", "scal"])
    expect_failure(2, ["top-k", "4 to 6"], ["expand", model, tmp_path / "no", "--top-k", "scale", "--experts", "6"])


def test_split_keeps_the_parameters(model, tmp_path):
    done = coppice("expand", model, tmp_path / "out", "--split", "2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["experts"] == [4, 8] and told["exact"] is True
    routers = told["parameters"][1] - told["parameters"][0]
    assert 0 < routers < 0.1 * told["parameters"][0]  # the rows of the router alone are copies
    verified = coppice("verify", model, tmp_path / "out")
    assert verified.returncode == 0 and "4 -> 8, each 1/2 of an expert before, top-K times 2" in verified.stdout, verified.stdout
    expect_failure(2, ["split", "equal parts"], ["expand", model, tmp_path / "no", "--split", "7"])
    expect_failure(2, ["experts", "no effect"], ["expand", model, tmp_path / "no", "--split", "2", "--experts", "2x"])
    expect_failure(2, ["--split", "2 or more"], ["expand", model, tmp_path / "no", "--split", "1"])


@pytest.mark.parametrize("method", ["interpolate", "svd_mix", "sparse_code_mix"])
def test_partners_in_a_model_of_one_expert(tmp_path, method):
    single = generate(tmp_path / "m", "mixtral", "num_experts=1", "top_k=1")
    expect_failure(2, [method, "has only 1"], ["expand", single, tmp_path / "out", "--expert-init", method])


METHODS = [row["name"] for row in json.loads(coppice("list", "expert-init", "--json").stdout)["expert-init"]]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_same_bytes_for_any_threads(model, tmp_path, method):
    for threads in (1, 3):
        done = coppice("expand", model, tmp_path / f"out{threads}", "--expert-init", method, "--threads", threads)
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out1") == digests(tmp_path / "out3")


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
    assert (settings["experts"], settings["seed"], settings["expert-init"]) == ("6", 4, "copy_noise:lambda=0.01")
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
    ("--expert-init", "copy_nose", "copy_noise"), ("--expert-init", "svd_mixx", "svd_mix"), ("--router-init", "bias_onli", "bias_only"), ("--select", "greeedy", "greedy"),
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
    ("--temperature", "2", "uniform"), ("--metric", "load", "does not use scores"), ("--layer-selection", "fc1_only", "does not use scores"),
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


# Same seed, same bytes: where files lay and how a size was spelled is not a part of a model.

def test_the_lineage_holds_contents_and_no_spellings(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(scores, tmp_path / "elsewhere" / "other.json")
    spellings = {"a": (scores, "5GB", "6"), "b": (os.path.relpath(scores), "5000MB", "1.5x"), "c": (tmp_path / "elsewhere" / ".." / "elsewhere" / "other.json", "5000000000", "6")}
    for name, (file, size, experts) in spellings.items():
        done = coppice("expand", model, tmp_path / name, "--scores", file, "--max-shard-bytes", size, "--experts", experts)
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")
    text = (tmp_path / "a" / "coppice.json").read_text()
    assert str(tmp_path) not in text and "scores.json" not in text
    assert json.loads(text)["steps"][0]["settings"]["max-shard-bytes"] == 5000000000


SPELLINGS = {  # of one growth each
    "parameters": (["--expert-init", "svd_perturb"], ["--expert-init", "svd_perturb:values=0.1"], ["--expert-init", "svd_perturb:values=1e-1"]),
    "defaults": ([], ["--experts", "2x", "--seed", "0", "--top-k", "keep", "--expert-init", "copy", "--select", "uniform", "--order", "append"]),
    "router": (["--router-init", "copy_noise"], ["--router-init", "copy_noise:lambda=0.01"]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_growth_has_the_same_bytes_however_it_is_spelled(model, tmp_path, name):
    outs = []
    for number, options in enumerate(SPELLINGS[name]):
        done = coppice("expand", model, tmp_path / f"out{number}", *options)
        assert done.returncode == 0, done.stderr
        outs.append(digests(tmp_path / f"out{number}"))
    assert all(out == outs[0] for out in outs)
    parts = tmp_path / "parts"
    for number in (1, 2):
        done = coppice("expand", model, parts, "--part", f"{number}/2", *SPELLINGS[name][number - 1])
        assert done.returncode == 0, done.stderr
    assert digests(parts) == outs[0]


def test_a_recipe_is_recorded_as_what_it_means(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model)
    common = ["expand", model, "--scores", scores, "--experts", "2x"]
    assert coppice(*common[:2], tmp_path / "named", *common[2:], "--recipe", "paper").returncode == 0
    step = json.loads((tmp_path / "named" / "coppice.json").read_text())["steps"][0]
    settings = [f"--{key}={step['settings'][key]}" for key in ("select", "metric", "layer-selection", "expert-init", "router-init")]
    done = coppice(*common[:2], tmp_path / "spelled", *common[2:], *settings)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "named") == digests(tmp_path / "spelled")


# Nobody knows of a plan file whether a rule made it, so that the lineage names it: by what it says.
def test_a_plan_file_counts_by_what_it_says_and_is_named(model, tmp_path):
    options = ["--experts", "6", "--expert-init", "svd_perturb"]
    text = coppice("expand", model, tmp_path / "out", *options, "--dry-run").stdout
    texts = {"plain": text, "bare": "\n".join(line for line in text.splitlines() if not line.startswith("#")),
             "spelled": text.replace('"svd_perturb"', '"svd_perturb:values=0.1"'),
             "by_layer": text + '\n[layer_methods.1]\nexpert_init = "svd_perturb:values=0.1"\n'}
    assert len(set(texts.values())) == 4
    assert coppice("expand", model, tmp_path / "direct", *options).returncode == 0
    planned = {}
    for name, plan in texts.items():
        (tmp_path / "plan.toml").write_text(plan)
        done = coppice("expand", model, tmp_path / name, "--plan", tmp_path / "plan.toml")
        assert done.returncode == 0, done.stderr
        planned[name] = digests(tmp_path / name)
    assert all(out == planned["plain"] for out in planned.values())
    step, direct = (json.loads((tmp_path / out / "coppice.json").read_text())["steps"][0] for out in ("plain", "direct"))
    assert step.pop("settings").pop("plan").startswith("sha256:") and "plan" not in direct.pop("settings")
    assert step == direct
    assert {k: v for k, v in planned["plain"].items() if k != "coppice.json"} == {k: v for k, v in digests(tmp_path / "direct").items() if k != "coppice.json"}
    assert coppice("verify", model, tmp_path / "plain").stdout.splitlines()[-1] == "ok: every tensor is accounted for"


def test_parts_may_find_the_same_scores_elsewhere(model, tmp_path):
    scores = write_scores(tmp_path / "scores.json", model)
    (tmp_path / "other").mkdir()
    shutil.copy(scores, tmp_path / "other" / "s.json")
    out = tmp_path / "out"
    assert coppice("expand", model, out, "--part", "1/2", "--scores", scores).returncode == 0
    expect_failure(2, ["other settings", "(--seed differs)"], ["expand", model, out, "--part", "2/2", "--scores", scores, "--seed", "1"])
    expect_failure(2, ["other settings", "(--select differs)"], ["expand", model, out, "--part", "2/2", "--scores", scores, "--select", "greedy"])
    done = coppice("expand", model, out, "--part", "2/2", "--scores", tmp_path / "other" / "s.json")
    assert done.returncode == 0, done.stderr
    assert coppice("verify", model, out).stdout.splitlines()[-1] == "ok: every tensor is accounted for"


def test_parents_of_one_layer_under_two_spellings_are_no_lineage(model, tmp_path):
    assert coppice("expand", model, tmp_path / "out").returncode == 0
    edit(tmp_path / "out" / "coppice.json", lambda lineage: lineage["steps"][0]["parents"].update({"00": lineage["steps"][0]["parents"]["0"]}))
    for command in (["expand", tmp_path / "out", tmp_path / "back", "--undo"], ["verify", model, tmp_path / "out"], ["inspect", tmp_path / "out"]):
        done = coppice(*command)
        assert done.returncode == 3 and "'00' is not a layer number" in done.stderr, (command, done.stderr)


def test_verify_says_what_there_was_nothing_to_compare_with(model, tmp_path):
    assert coppice("expand", model, tmp_path / "out", "--expert-init", "drop_upcycle").returncode == 0
    done = coppice("verify", model, tmp_path / "out")
    assert "recomputed and compared byte for byte: the expansion in coppice.json" in done.stdout
    assert done.stdout.splitlines()[-1] == "ok: every tensor is accounted for"
    (tmp_path / "out" / "coppice.json").unlink()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    edit(tmp_path / "out" / "config.json", lambda config: config.update(router_jitter_noise=0.0))
    done = coppice("verify", model, tmp_path / "out")
    assert done.returncode == 0 and "by bit-equal columns" in done.stdout, done.stdout
    assert done.stdout.splitlines()[-1] == "ok: every tensor is accounted for; not compared: new keys of config.json (router_jitter_noise); values of 24 matrices of copies, 8 biases; files that are new (notes.txt)"
