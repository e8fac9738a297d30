"""`coppice convert` as a user meets it: what it prints, one clear sentence for every bad input, kills, and the commands of its page."""

import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
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
SLOW = ["--experts", "16", "--granularity", "2", "--top-k", "2", "--expert-init", "copy_noise", "--max-shard-bytes", "20MB"]


def coppice(*arguments, **options):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def digests(directory):
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.rglob("*") if f.is_file()}


def generate(directory, family, *sizes):
    subprocess.run([GENERATE, directory, family, "BF16", *sizes], check=True, timeout=120)
    return directory


@pytest.fixture
def model(tmp_path):
    """A dense model; afterwards it must be what it was, and no temporary may be left beside it."""
    directory = generate(tmp_path / "m", "llama")
    (directory / "tokenizer.json").write_text("{}")
    before = digests(directory)
    yield directory
    assert digests(directory) == before
    assert not list(tmp_path.glob(".*")), "a temporary was left"


def expect_failure(status, words, *arguments):
    done = coppice("convert", *arguments)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("coppice: error: "), done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# What it does.

def test_says_what_it_wrote_and_whether_it_is_exact(model, tmp_path):
    done = coppice("convert", model, tmp_path / "out", "--granularity", "2", "--scale", "down")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wrote ") and "MiB" in lines[0]
    assert lines[1] == "llama -> mixtral: 16 experts of width 64 in 2 of 2 layers, 4 per token, topk_softmax"
    assert "down 2;" in lines[3]
    assert lines[-1].startswith("Exact up to rounding: ")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_dry_run_says_the_same_and_writes_nothing(model, tmp_path):
    options = ["--to", "qwen2_moe", "--every", "2", "--shared-expert", "32", "--recipe", "paper"]
    planned = coppice("convert", model, tmp_path / "out", *options, "--dry-run")
    assert not (tmp_path / "out").exists()
    done = coppice("convert", model, tmp_path / "out", *options)
    assert done.stdout.splitlines()[1:] == planned.stdout.splitlines()
    told = json.loads(coppice("convert", model, tmp_path / "other", *options, "--dry-run", "--json").stdout)
    assert told["plan"]["layers"] == {"1": [0] * 8}
    assert told["experts"] == 8 and told["exact"] is False


def test_one_conversion_has_the_same_bytes_however_it_is_spelled(model, tmp_path):
    for out, options in {"plain": ["--granularity", "2"],
                         "spelled": ["--granularity", "2", "--experts", "16", "--top-k", "4", "--to", "mixtral", "--every", "1", "--scale", "cbrt",
                                     "--expert-init", "copy", "--router", "random:std=0.02", "--seed", "0", "--shared-expert", "0"]}.items():
        done = coppice("convert", model, tmp_path / out, *options)
        assert done.returncode == 0, done.stderr
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "spelled" / file.name).read_bytes(), file.name
    done = coppice("convert", model, tmp_path / "parts", "--part", "1/2", "--granularity", "2")
    assert done.returncode == 0, done.stderr
    done = coppice("convert", model, tmp_path / "parts", "--part", "2/2", "--granularity", "2", "--seed", "1")
    assert done.returncode == 2 and "(--seed differs)" in done.stderr
    done = coppice("convert", model, tmp_path / "parts", "--part", "2/2", "--granularity", "2", "--router", "random:std=0.02")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "parts" / "coppice.json").read_bytes() == (tmp_path / "plain" / "coppice.json").read_bytes()


def test_lineage_has_the_plan_and_the_parents(model, tmp_path):
    coppice("convert", model, tmp_path / "out", "--granularity", "4", "--seed", "9")
    step = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]
    assert step["command"] == "convert" and step["families"] == ["llama", "mixtral"] and step["experts"] == [4, 32]
    assert step["parents"]["1"] == [0, 1, 2, 3] * 8
    assert step["plan"]["seed"] == 9 and step["settings"].items() >= {"granularity": 4, "seed": 9, "max-shard-bytes": 5000000000}.items()
    digest = json.loads(coppice("inspect", model, "--json").stdout)["digest"]
    assert step["source_digests"] == [digest]
    assert "convert: 4 -> 32 experts" in coppice("inspect", tmp_path / "out").stdout


def test_a_converted_model_grows_and_that_can_be_undone(model, tmp_path):
    assert coppice("convert", model, tmp_path / "a", "--granularity", "2").returncode == 0
    assert coppice("expand", tmp_path / "a", tmp_path / "b", "--experts", "2x").returncode == 0
    assert coppice("verify", tmp_path / "a", tmp_path / "b").returncode == 0
    assert [s["command"] for s in json.loads((tmp_path / "b" / "coppice.json").read_text())["steps"]] == ["convert", "expand"]
    assert coppice("expand", tmp_path / "b", tmp_path / "c", "--undo").returncode == 0
    assert coppice("verify", model, tmp_path / "c").returncode == 0
    done = coppice("expand", tmp_path / "c", tmp_path / "d", "--undo")
    assert done.returncode == 2 and "records an expansion" in done.stderr


@pytest.mark.parametrize("options", [["--granularity", "2"], ["--to", "granitemoe", "--granularity", "4", "--expert-init", "copy_noise"], ["--to", "qwen2_moe", "--shared-expert", "8"]])
def test_bytes_do_not_depend_on_threads_shards_and_parts(model, tmp_path, options):
    wanted = None
    for i, more in enumerate([["--threads", "1"], ["--threads", "3"], ["--part", "1/2"]]):
        out = tmp_path / f"out{i}"
        assert coppice("convert", model, out, *options, *more).returncode == 0
        if "--part" in more:
            assert not out.exists()
            assert coppice("convert", model, out, *options, "--part", "2/2").returncode == 0
        files = {name: digest for name, digest in digests(out).items() if name != "coppice.json"}
        wanted = wanted or files
        assert files == wanted
    assert coppice("convert", model, tmp_path / "small", *options, "--max-shard-bytes", "100KB").returncode == 0
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    assert coppice("verify", model, tmp_path / "small").returncode == 0


def test_the_same_seed_gives_the_same_routers_and_another_does_not(model, tmp_path):
    for out, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert coppice("convert", model, tmp_path / out, "--seed", seed).returncode == 0
    weights = [hashlib.sha256((tmp_path / out / "model.safetensors").read_bytes()).hexdigest() for out in "abc"]
    assert weights[0] == weights[1] != weights[2]


# What verify finds.

def change_tensor(directory, name):
    file = directory / "model.safetensors"
    data = bytearray(file.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    begin = json.loads(data[8:8 + length])[name]["data_offsets"][0]
    data[8 + length + begin] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.block_sparse_moe.experts.3.w2.weight", "model.layers.0.block_sparse_moe.gate.weight"])
def test_verify_finds_a_changed_bit(model, tmp_path, name):
    out = tmp_path / "out"
    assert coppice("convert", model, out, "--granularity", "2").returncode == 0
    assert coppice("verify", model, out).stdout.splitlines()[-1] == "ok: every tensor is accounted for"
    change_tensor(out, name)
    done = coppice("verify", model, out)
    assert done.returncode == 1 and f"problem: '{name}': its bytes differ from what the conversion computes" in done.stdout


def test_verify_says_what_every_tensor_is(model, tmp_path):
    assert coppice("convert", model, tmp_path / "out", "--granularity", "2").returncode == 0
    told = json.loads(coppice("verify", model, tmp_path / "out", "--json").stdout)
    assert told["ok"] and told["expert_tensors"] == 2 * 16 * 3 and told["identical"] == 15
    text = told["tensors"]["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    assert text == "slice 2 of 2 of 'model.layers.1.mlp.down_proj.weight', times 1.26"
    assert told["tensors"]["model.norm.weight"] == "a copy of 'model.norm.weight'"


def test_verify_needs_the_lineage_and_all_parents(model, tmp_path):
    out = tmp_path / "out"
    assert coppice("convert", model, out).returncode == 0
    done = coppice("verify", model, model, out)
    assert done.returncode == 2 and "was converted from 1 dense models, but 2 are given" in done.stderr
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert "problem: config.json: 'rope_theta' is 5.0; wanted 10000.0" in coppice("verify", model, out).stdout
    (out / "coppice.json").unlink()
    done = coppice("verify", model, out)
    assert done.returncode == 3 and "has no conversion" in done.stderr


@pytest.mark.parametrize("change, words", [
    (lambda p: p.update(granularity=3), "granularity"), (lambda p: p.update(experts=7), "layer 0 has 8 experts; wanted 7"), (lambda p: p.update(surprise=1), "surprise"),
    (lambda p: p["layers"].update({"7": p["layers"]["0"]}), "layers"), (lambda p: p["scale"].update(down=-1), "'down': is -1"), (lambda p: p.update({"from": "qwen3"}), "qwen3"),
    (lambda p: p["layers"].update({"0": [5] * 8}), "layer 0"), (lambda p: p.update(routing="softmax_topk"), "routing"), (lambda p: p.update(router="rows"), "rows")])
def test_an_edited_plan_is_an_error_and_no_crash(model, tmp_path, change, words):
    out = tmp_path / "out"
    assert coppice("convert", model, out).returncode == 0
    lineage = json.loads((out / "coppice.json").read_text())
    change(lineage["steps"][-1]["plan"])
    (out / "coppice.json").write_text(json.dumps(lineage))
    done = coppice("verify", model, out)
    assert done.returncode in (2, 3) and words in done.stderr, done.stderr


# What it refuses.

@pytest.mark.parametrize("options, words", [
    (["--granularity", "3"], ["granularity", "128", "divisor"]),
    (["--granularity", "4", "--experts", "6"], ["experts", "6 is not a multiple of the granularity, 4"]),
    (["--granularity", "4", "--top-k", "6"], ["top-k", "6 is not a multiple", "--no-virtual-group"]),
    (["--top-k", "9"], ["top-k", "1 to 8"]), (["--top-k", "0"], ["top-k"]), (["--granularity", "0"], ["granularity"]), (["--experts", "-8"], ["experts"]),
    (["--to", "mixtrl"], ["'mixtrl'", "did you mean 'mixtral'?"]), (["--to", "olmoe"], ["'olmoe'", "known: mixtral"]),
    (["--routing", "softmax_topk"], ["routing", "mixtral always computes"]), (["--routing", "topk"], ["routing", "'topk'"]),
    (["--to", "granitemoe", "--routing", "softmax_topk"], ["granitemoe always computes"]), (["--to", "glm4_moe", "--routing", "topk_softmax"], ["sigmoids"]),
    (["--scale", "cube"], ["scale", "'cube'"]), (["--calibrate"], ["calibrate", "add up to 1"]),
    (["--to", "qwen2_moe", "--calibrate", "--scale", "none"], ["calibrate", "nothing is scaled"]),
    (["--every", "2"], ["every layer of mixtral has experts"]), (["--to", "qwen2_moe", "--every", "0"], ["every"]), (["--to", "qwen2_moe", "--every", "3"], ["every"]),
    (["--to", "qwen2_moe", "--layers", "2"], ["layer 2 of 0 to 1"]), (["--to", "qwen2_moe", "--layers", "1", "--every", "2"], ["leave one of the two out"]),
    (["--shared-expert", "8"], ["mixtral has no shared expert"]), (["--to", "qwen2_moe", "--shared-expert", "129"], ["shared-expert", "0 to"]), (["--to", "glm4_moe", "--shared-expert", "8"], ["multiple"]),
    (["--expert-init", "copynoise"], ["did you mean 'copy_noise'?"]), (["--expert-init", "interpolate"], ["mixes with another slice"]), (["--init-all"], ["init-all", "no effect"]),
    (["--expert-init", "copy_noise", "--experts", "1", "--top-k", "1"], ["each slice has only one expert"]), (["--router", "rnd"], ["'rnd'"]), (["--router", "random:std=-1"], ["std"]),
    (["--router", "rows"], ["--router-rows"]), (["--trunk", "first"], ["--trunk", "only one MODEL"]), (["--recipe", "pape"], ["did you mean 'paper'?"]),
    (["--recipe", "paper"], ["mixtral always computes"]), (["--dry-run", "--resume"], ["writes nothing"]), (["--dense-average", "--experts", "8"], ["--experts"]),
    (["--dense-average"], ["has no experts"])])
def test_settings_that_do_not_fit_are_wrong_usage(model, tmp_path, options, words):
    expect_failure(2, words, model, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_converted(model, tmp_path):
    moe = generate(tmp_path / "moe", "qwen3_moe")
    expect_failure(3, ["has experts already", "coppice expand"], moe, tmp_path / "out")
    expect_failure(3, ["none"], tmp_path / "none", tmp_path / "out")
    expect_failure(2, ["'mixtral' is not a dense family", "did you mean 'mistral'?"], moe, tmp_path / "out", "--dense-average", "--to", "mixtral")
    expect_failure(2, ["'gemma' is not a dense family"], moe, tmp_path / "out", "--dense-average", "--to", "gemma")
    expect_failure(3, ["olmoe cannot be averaged", "known: mixtral"], generate(tmp_path / "olmoe", "olmoe"), tmp_path / "out", "--dense-average")
    (tmp_path / "there").mkdir()
    expect_failure(2, ["there"], model, tmp_path / "there")
    quantised = tmp_path / "q"
    shutil.copytree(model, quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    expect_failure(3, ["quantised"], quantised, tmp_path / "out")
    (quantised / "config.json").write_text(json.dumps({**config, "hidden_act": 7}))
    expect_failure(3, ["'hidden_act' is 7"], quantised, tmp_path / "out")


@pytest.mark.parametrize("key", ["intermediate_size", "hidden_size", "num_key_value_heads", "vocab_size"])
def test_a_configuration_that_does_not_fit_the_weights(tmp_path, key):
    model = generate(tmp_path / "m", "gemma")
    assert coppice("convert", model, tmp_path / "good").returncode == 0
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, key: config[key] * 2}))
    expect_failure(3, ["with a shape that differs from config.json", " is [", "wanted ["], model, tmp_path / "out")
    del config[key]
    (model / "config.json").write_text(json.dumps(config))
    assert coppice("convert", model, tmp_path / "out").returncode == 3


def write_rows(path, tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("tensors, status, words", [
    ({"router.0": ([8, 64], [0.5] * 512)}, 3, ["no rows for layer 1"]), ({"router.0": ([7, 64], [0.5] * 448), "router.1": ([8, 64], [0.5] * 512)}, 3, ["[7, 64]", "[8, 64]"]),
    ({"router.0": ([512], [0.5] * 512)}, 3, ["[512]"]), ({"rows": ([8, 64], [0.5] * 512)}, 3, ["'rows'", "router.0"]), ({"router.x": ([8, 64], [0.5] * 512)}, 3, ["not a layer number"]),
    ({"router.0": ([8, 64], [float("nan")] * 512)}, 3, ["NaN"])])
def test_bad_router_rows(model, tmp_path, tensors, status, words):
    rows = write_rows(tmp_path / "rows.safetensors", tensors)
    expect_failure(status, words, model, tmp_path / "out", "--router-rows", rows)
    expect_failure(2, ["exclude"], model, tmp_path / "out", "--router-rows", write_rows(rows, {"router.0": ([8, 64], [0.5] * 512)}), "--router", "zero")
    assert not (tmp_path / "out").exists()


# Kills, as `expand` is killed: the writer is the same.

@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("large") / "m", "llama", "model_dim=512", "dense_width=2048", "num_layers=2")


@pytest.fixture(scope="module")
def undisturbed(large, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    begin = time.monotonic()
    assert coppice("convert", large, out, *SLOW, "--threads", "1").returncode == 0
    seconds = time.monotonic() - begin
    assert len(list(out.glob("*.safetensors"))) > 2
    return digests(out), seconds


def killed(seconds, *arguments):
    process = subprocess.Popen([COPPICE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err
    return process.returncode != 0


def test_killed_anywhere_and_resumed(large, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    chance = random.Random(3)
    kills = 0
    for run in range(50):
        out = tmp_path / f"out{run}"
        while killed(chance.uniform(0, seconds), "convert", large, out, *SLOW, "--threads", chance.choice([1, 2]), "--resume"):
            kills += 1
            assert not out.exists() or digests(out) == wanted, "half an output has the final name"
            if out.exists():
                break
        assert digests(out) == wanted
        shutil.rmtree(out)
        if kills >= 8:
            return
    pytest.fail(f"only {kills} kills in 50 runs")


def test_without_resume_the_leftovers_go(large, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    out = tmp_path / "out"
    for share in (0.5, 0.2, 0.1, 0.05):
        if killed(share * seconds, "convert", large, out, *SLOW, "--threads", "1"):
            break
        shutil.rmtree(out)
    assert not out.exists()
    assert coppice("convert", large, out, *SLOW).returncode == 0
    assert digests(out) == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_parts_fill_one_output(large, undisturbed, tmp_path):
    out = tmp_path / "out"
    running = [subprocess.Popen([COPPICE, "convert", large, out, *SLOW, "--threads", "1", "--part", f"{i}/3"], stdout=subprocess.DEVNULL) for i in (1, 2, 3)]
    assert [process.wait(timeout=300) for process in running] == [0, 0, 0]
    assert digests(out) == undisturbed[0]


def write_sparse_dense_model(directory, layers):
    """A llama of 4096-unit layers without its bytes: all holes."""
    generate(directory, "llama")
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    config = json.loads((directory / "config.json").read_text())
    dim, width = 512, 4096
    config.update(hidden_size=dim, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8, head_dim=64, vocab_size=1024)
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [1024, dim], "model.norm.weight": [dim], "lm_head.weight": [1024, dim]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{p}_proj.weight": [dim, dim] for p in "qkvo"}
        shapes |= {f"{name}.{n}.weight": [dim] for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{name}.mlp.{p}_proj.weight": [dim, width] if p == "down" else [width, dim] for p in ("gate", "up", "down")}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("options", [[], ["--expert-init", "copy_noise"], ["--to", "granitemoe"]])
def test_memory_does_not_grow_with_the_model(tmp_path, options):
    peaks = []
    for layers in (2, 8):
        source, out = tmp_path / f"m{layers}", tmp_path / f"out{layers}"
        write_sparse_dense_model(source, layers)
        done = coppice("convert", source, out, "--granularity", "2", "--experts", "8", "--threads", "2", "--json", *options)
        assert done.returncode == 0, done.stderr
        peaks.append(json.loads(done.stdout)["peak_rss_bytes"] / 2**20)
        shutil.rmtree(out)
    assert max(peaks) < 256, peaks
    assert peaks[1] < peaks[0] + 32, peaks


# The page of the command.

def test_every_command_of_the_page_works(tmp_path):
    page = (REPOSITORY / "docs/convert.md").read_text()
    commands = [line.split("#")[0].split() for block in re.findall(r"```\n(.*?)```", page, re.S) for line in block.splitlines() if line.startswith("coppice ")]
    assert len(commands) >= 9, "docs/convert.md lost its commands"
    for name, family in [("DENSE", "mistral"), ("MATHS", "mistral"), ("CODE", "mistral"), ("QWEN", "qwen3")]:
        generate(tmp_path / name, family)
    write_tokens(tmp_path / "CALIBRATION", [i * 7 % 256 for i in range(2000)])
    for command in commands:
        done = subprocess.run([COPPICE, *command[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    assert not (tmp_path / "NOTHING").exists()
    for name, exact in [("COARSE", True), ("EXACT", True), ("BALANCED", True), ("FINE", False)]:
        told = coppice("convert", tmp_path / ("QWEN" if name in ("EXACT", "FINE") else "DENSE"), tmp_path / f"{name}2", *next(c for c in commands if name in c)[4:], "--json", "--dry-run")
        assert json.loads(told.stdout)["exact"] is exact, name
