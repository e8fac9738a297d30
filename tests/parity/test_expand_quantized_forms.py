"""Every quantised form is copied with all that lies beside its matrices, whatever it is called, and every message names the quantisation."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, grown, make_model, read, read_config, rewrite, write_config  # noqa: E402
from quantised_models import FORMS, Random  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
BY_NAME = {family.name: family for family in FAMILIES}
SIZES = dict(moe_intermediate_size=32, intermediate_size=32)
COUNTS = {"2x": 8, "3x": 12, "6": 6}


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def make(name, form, folder):
    """A tiny model in this form on disk."""
    family = BY_NAME[name]
    latent = dict(kv_lora_rank=32, q_lora_rank=32) if "kv_lora_rank" in family.settings else {}
    family = dataclasses.replace(family, settings={**family.settings, **SIZES, **latent}, aliases=())
    make_model(family, folder / "plain")
    tensors, quantization = FORMS[form][0](read(folder / "plain"), Random())
    source = folder / "source"
    source.mkdir()
    rewrite(source, tensors)
    write_config(source, dict(read_config(folder / "plain"), quantization_config=quantization, dtype="bfloat16"))
    return family, source, FORMS[form][1]


MODELS = [*(("qwen3_moe", form) for form in FORMS), *(("deepseek_v3", form) for form in ("fp8_block", "compressed_int4", "modelopt_nvfp4"))]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def model(request, tmp_path_factory):
    return make(*request.param, tmp_path_factory.mktemp("-".join(request.param)))


@pytest.mark.parametrize("count", COUNTS)
def test_experts_are_copied_with_all_that_lies_beside_them(model, tmp_path, count):
    family, source, name = model
    done = coppice("expand", source, tmp_path / "out", "--experts", count, "--router-init", "copy")
    assert done.returncode == 0, done.stderr
    assert name in done.stdout, done.stdout
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    problems = differences(grown(family, read(source), parents, COUNTS[count]), read(tmp_path / "out"))
    assert not problems, "\n".join(problems[:20])
    assert read_config(tmp_path / "out") == dict(read_config(source), **{family.experts: COUNTS[count]})
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


def test_router_methods_need_no_other_experts(model, tmp_path):
    _, source, _ = model
    done = coppice("expand", source, tmp_path / "out", "--router-init", "copy_noise")
    assert done.returncode == 0, done.stderr
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


REFUSED = {
    "a method that changes values": ("expand", "SOURCE", "OUT", "--expert-init", "copy_noise"),
    "a split": ("expand", "SOURCE", "OUT", "--split", "2"),
    "a conversion": ("convert", "SOURCE", "OUT", "--to", "llama"),
    "an average": ("convert", "SOURCE", "OUT", "--dense-average"),
    "norms": ("inspect", "SOURCE", "--experts"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_name_the_quantisation(model, tmp_path, what):
    _, source, name = model
    arguments = [dict(SOURCE=source, OUT=tmp_path / "out").get(argument, argument) for argument in REFUSED[what]]
    done = coppice(*arguments)
    assert done.returncode == 3 and name in done.stderr, (done.returncode, done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_inspect_and_verify_name_the_quantisation(model):
    _, source, name = model
    done = coppice("inspect", source)
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr
    done = coppice("verify", source, source)
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr


def test_a_changed_companion_does_not_pass_verify(model, tmp_path):
    _, source, name = model
    assert coppice("expand", source, tmp_path / "out", "--router-init", "copy").returncode == 0
    tensors = read(tmp_path / "out")
    last = max(key for key in tensors if ".experts.7.down_proj" in key)
    tensors[last] = tensors[last].clone()
    tensors[last].reshape(-1).view(torch.uint8)[0] ^= 1
    rewrite(tmp_path / "out", tensors)
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 1 and last in done.stdout and name in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["score", "eval", "train"])
def test_what_computes_with_the_model_refuses_it_by_name(model, tmp_path, command):
    _, source, name = model
    tokens = write_tokens(tmp_path / "tokens", [1] * 512)
    arguments = {"score": (source, tokens, "--out", tmp_path / "scores.json", "--batches", "2", "--batch-tokens", "64", "--sequence-length", "32"),
                 "eval": (source, "--tokens", tokens, "--sequence-length", "32"),
                 "train": ("--config", REPOSITORY / "recipes" / "continue.toml", "--model.path", source, "--data.train", tokens,
                           "--train.out", tmp_path / "run", "--data.sequence_length", "32", "--train.start", "fresh")}[command]
    done = coppice(command, *arguments)
    if "this is the core build" in done.stderr:
        pytest.skip("this is the core build, which computes nothing with a model")
    assert done.returncode == 3 and name in done.stderr, (done.returncode, done.stderr)


def test_modules_that_the_configuration_names_are_extended(tmp_path):
    """Lists and maps that name every expert get the new ones; a list that leaves some out is refused, and says which."""
    family, source, name = make("qwen3_moe", "compressed_int4", tmp_path)
    config = read_config(source)
    modules = lambda count: [f"model.layers.1.mlp.experts.{expert}.{part}" for expert in range(count) for part in ("gate_proj", "up_proj")]
    group = config["quantization_config"]["config_groups"]["group_0"]
    group["targets"] = modules(4)
    config["quantization_config"]["modules"] = {module: {"bits": 4} for module in modules(4)}
    write_config(source, config)
    done = coppice("expand", source, tmp_path / "out", "--experts", "6")
    assert done.returncode == 0, done.stderr
    grown_config = read_config(tmp_path / "out")["quantization_config"]
    assert sorted(grown_config["config_groups"]["group_0"]["targets"]) == sorted(modules(6))
    assert sorted(grown_config["modules"]) == sorted(modules(6))
    assert grown_config["ignore"] == config["quantization_config"]["ignore"]
    group["targets"] = modules(3)
    write_config(source, config)
    done = coppice("expand", source, tmp_path / "other")
    assert done.returncode == 3 and name in done.stderr and "experts.3." in done.stderr, done.stderr


def test_parts_of_stacked_experts(tmp_path):
    """Names that go on behind that of a stacked matrix, scales of all experts, and scales of the cache in an attention."""
    family = BY_NAME["qwen3_vl_moe"]
    make_model(family, tmp_path / "plain")
    random, tensors = Random(), {}
    for name, tensor in read(tmp_path / "plain").items():
        tensors[name] = tensor.bfloat16()
        if ".experts." in name and name.endswith("_proj"):
            experts, rows, columns = tensor.shape
            tensors[name] = random.bytes(experts, rows, columns // 2)
            tensors[name + "_weight_scale"] = random.scales(experts, rows, 1).to(torch.float8_e4m3fn)
            tensors[name + "_weight_scale_2"] = random.scales(experts, dtype=torch.float32)
            tensors[name + "_input_scale"] = random.scales(dtype=torch.float32)
            tensors[name + "_pre_quant_scale"] = random.scales(1, dtype=torch.float32)
        if name.endswith("language_model.layers.0.self_attn.k_proj.weight"):
            tensors[name.replace("k_proj.weight", "k_scale")] = random.scales(dtype=torch.float32)
    source = tmp_path / "source"
    source.mkdir()
    rewrite(source, tensors)
    write_config(source, dict(read_config(tmp_path / "plain"), quantization_config=dict(quant_method="modelopt", quant_algo="NVFP4")))
    done = coppice("expand", source, tmp_path / "out", "--experts", "3x", "--router-init", "copy")
    assert done.returncode == 0, done.stderr
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    parents = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]["parents"]
    family = dataclasses.replace(family, rows=(*family.rows, r"experts\.\w+_weight_scale(_2)?"))
    problems = differences(grown(family, tensors, parents, 12), read(tmp_path / "out"))
    assert not problems, "\n".join(problems[:20])


# What inkling2_loop has on disk: bytes of two values or of one with scales beside them, and a largest value of each expert with what divides it, one for
# all or one each. config.json says nothing of it, and transformers dequantises what it loads.
def nvfp4(tensor, random, denominator):
    experts, rows, columns = tensor.shape
    return {"": torch.randint(0, 256, (experts, rows, columns // 2), generator=random, dtype=torch.uint8),
            "_scale": (torch.rand(experts, rows, columns // 16, generator=random) + 0.5).to(torch.float8_e4m3fn),
            "_amax": torch.rand(experts, generator=random) + 0.5,
            "_outer_scale_denominator": denominator}


def mxfp8(tensor, random):
    experts, rows, columns = tensor.shape
    return {"": tensor.to(torch.float8_e4m3fn), "_scale": torch.randint(120, 130, (experts, rows, columns // 32), generator=random, dtype=torch.uint8)}


LOOP_FORMS = {"nvfp4": lambda tensor, random: nvfp4(tensor, random, torch.full((len(tensor),), 2688.0)),
              "nvfp4, one denominator": lambda tensor, random: nvfp4(tensor, random, torch.tensor(2688.0)), "mxfp8": mxfp8}


@pytest.mark.parametrize("form", LOOP_FORMS)
def test_inkling2_loop_keeps_what_lies_beside_its_experts(tmp_path, form):
    family = BY_NAME["inkling2_loop"]
    if family.missing:
        pytest.skip(family.missing)
    text = {**family.settings["text_config"], **SIZES}
    family = dataclasses.replace(family, settings={**family.settings, "text_config": text})
    source, out, random = tmp_path / "source", tmp_path / "out", torch.Generator().manual_seed(5)
    make_model(family, source)
    tensors = {}
    for name, tensor in read(source).items():
        stored = LOOP_FORMS[form](tensor, random) if name.endswith(("w13_weight", "w2_weight")) else {"": tensor}
        tensors |= {name + suffix: part for suffix, part in stored.items()}
    rewrite(source, tensors)
    done = coppice("expand", source, out, "--experts", "2x", "--router-init", "copy")
    assert done.returncode == 0, done.stderr
    parents = json.loads((out / "coppice.json").read_text())["steps"][-1]["parents"]
    after = read(out)
    beside = r"mlp\.experts\.w(13|2)_weight(_scale|_amax" + ("" if "one" in form else "|_outer_scale_denominator") + ")"
    problems = differences(grown(dataclasses.replace(family, rows=(*family.rows, beside)), tensors, parents, 8), after)
    assert not problems, "\n".join(problems[:20])
    done = coppice("verify", source, out)
    assert done.returncode == 0, done.stdout + done.stderr
    before, loaded = (load_loop(directory) for directory in (source, out))
    seen = 0
    for name, tensor in loaded.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            assert torch.equal(tensor, before[name][parents[name.split("layers.")[1].split(".")[0]]]), name
            seen += 1
    assert seen == 2 * 3
    for change in (("--expert-init", "copy_noise"), ("--split", 2)):
        refused = coppice("expand", source, tmp_path / "no", *(("--experts", "2x") if change[0] != "--split" else ()), *change)
        assert refused.returncode in (2, 3) and "w13_weight" in refused.stderr, refused.stderr


def load_loop(directory):
    model, info = transformers.Inkling2LoopForConditionalGeneration.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert not {kind: found for kind, found in info.items() if found}
    return model.state_dict()
