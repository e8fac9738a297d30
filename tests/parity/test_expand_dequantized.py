"""`expand --dequantize` computes what the libraries that wrote each form read from it, rounded once to bf16.

transformers is always there; compressed-tensors and nvidia-modelopt may be missing, which skips the comparisons with them.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, grown, make_model, read, read_config, rewrite, write_config  # noqa: E402
from quantised_models import FORMS, Random, fp8_config, block_fp8, matrices  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
BY_NAME = {family.name: family for family in FAMILIES}
SIZES = dict(moe_intermediate_size=32, intermediate_size=32)


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def by_transformers(parts, config):
    """Fp8Dequantize; it takes whole blocks only, so that a matrix that ends within one is filled up with zeros."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight, scale = parts["weight"], parts["weight_scale_inv"]
    block = config["weight_block_size"][0]
    rows, columns = weight.shape
    whole = torch.zeros(scale.shape[0] * block, scale.shape[1] * block, dtype=torch.float32)
    whole[:rows, :columns] = weight.float()
    return Fp8Dequantize(None)._dequantize_one(whole.to(weight.dtype), scale, torch.bfloat16)[:rows, :columns]


def by_compressed_tensors(parts, config):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    if "weight_g_idx" in parts:  # which this version does not read; 0.12 gives the same
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        values = unpack_from_int32(parts["weight_packed"], 4, torch.Size(parts["weight_shape"].tolist()))
        return values.bfloat16() * parts["weight_scale"][:, parts["weight_g_idx"].long()]
    group = {key: value for key, value in config["config_groups"]["group_0"].items() if key != "format"}
    scheme = QuantizationScheme(**group)
    return BaseCompressor.get_value_from_registry(config["format"]).decompress(parts, scheme)["weight"].bfloat16()


def by_modelopt(parts, config):
    """NVFP4QTensor for NVFP4; FP8 is a product."""
    if config["quant_algo"] == "FP8":
        return (parts["weight"].float() * parts["weight_scale"]).bfloat16()
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    for _ in range(5):  # it fails to import itself in a circle until its parts are loaded
        try:
            from modelopt.torch.quantization.qtensor import NVFP4QTensor
            break
        except ImportError:
            continue
    else:
        pytest.skip("nvidia-modelopt cannot be imported")
    rows, columns = parts["weight"].shape
    tensor = NVFP4QTensor(torch.Size([rows, 2 * columns]), torch.bfloat16, parts["weight"])
    return tensor.dequantize(torch.bfloat16, scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16})


LIBRARIES = {"fp8": by_transformers, "compressed-tensors": by_compressed_tensors, "modelopt": by_modelopt}
ACTIVATIONS = ("input_scale", "input_global_scale", "k_scale", "v_scale")


def in_bf16(tensors, config):
    """The tensors that a library makes of a quantised model's."""
    modules, made = {}, {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    for module, parts in modules.items():
        is_quantised = any("scale" in part for part in parts)
        if is_quantised:
            parts = {part: tensor for part, tensor in parts.items() if part not in ACTIVATIONS}
            made[module + ".weight"] = LIBRARIES[config["quant_method"]](parts, config).contiguous()
        else:
            made.update({f"{module}.{part}" if module else part: tensor for part, tensor in parts.items()})
    return made


COMPUTED = [form for form in FORMS if form.startswith(("fp8", "compressed", "modelopt"))]
OTHERS = [form for form in FORMS if not form.startswith(("fp8", "compressed", "modelopt"))]


@pytest.fixture(scope="module", params=["qwen3_moe", "deepseek_v3"])
def plain(request, tmp_path_factory):
    family = BY_NAME[request.param]
    latent = dict(kv_lora_rank=32, q_lora_rank=32) if "kv_lora_rank" in family.settings else {}
    family = dataclasses.replace(family, settings={**family.settings, **SIZES, **latent}, aliases=())
    directory = tmp_path_factory.mktemp(request.param) / "plain"
    make_model(family, directory)
    return family, directory


def make(form, plain, folder):
    family, directory = plain
    quantise, name = FORMS[form]
    tensors, quantization = quantise(read(directory), Random())
    source = folder / "source"
    source.mkdir()
    rewrite(source, tensors)
    write_config(source, dict(read_config(directory), quantization_config=quantization, dtype="bfloat16"))
    (source / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    return family, source, name, quantization


def without(config):
    return {key: value for key, value in config.items() if key != "quantization_config"}


@pytest.mark.parametrize("form", COMPUTED)
def test_values_are_those_of_the_library(plain, tmp_path, form):
    family, source, name, quantization = make(form, plain, tmp_path)
    done = coppice("expand", source, tmp_path / "out", "--dequantize", "--router-init", "copy")
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr
    lineage = json.loads((tmp_path / "out" / "coppice.json").read_text())["steps"][-1]
    assert lineage["settings"]["dequantize"] is True
    assert read_config(tmp_path / "out") == dict(without(read_config(source)), **{family.experts: 8})
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    found = read(tmp_path / "out")
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0 and name in done.stdout, done.stdout + done.stderr
    if form == "modelopt_nvfp4":  # its library drops the sign of zeros
        found = {key: tensor + 0 if tensor.dtype == torch.bfloat16 else tensor for key, tensor in found.items()}
    problems = differences(grown(family, in_bf16(read(source), quantization), lineage["parents"], 8), found)
    assert not problems, "\n".join(problems[:20])


@pytest.mark.parametrize("options", [("--expert-init", "drop_units"), ("--expert-init", "copy_noise"), ("--split", "2")], ids=" ".join)
@pytest.mark.parametrize("form", ["fp8_block", "compressed_int4", "modelopt_nvfp4"])
def test_methods_change_values_as_in_the_model_in_bf16(plain, tmp_path, form, options):
    """They compute with the values before rounding, so that the result may differ from that of a bf16 model in the last digit."""
    family, source, name, quantization = make(form, plain, tmp_path)
    done = coppice("expand", source, tmp_path / "out", "--dequantize", *options)
    assert done.returncode == 0, done.stderr
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    bf16 = tmp_path / "bf16"
    bf16.mkdir()
    rewrite(bf16, in_bf16(read(source), quantization))
    write_config(bf16, without(read_config(source)))
    assert coppice("expand", bf16, tmp_path / "other", *options).returncode == 0
    found, wanted = read(tmp_path / "out"), read(tmp_path / "other")
    assert found.keys() == wanted.keys()
    for tensor in found:
        torch.testing.assert_close(found[tensor].float(), wanted[tensor].float(), rtol=0.02, atol=0.02, msg=tensor)


def test_json_says_it(plain, tmp_path):
    _, source, name, _ = make("fp8_block", plain, tmp_path)
    sizes = []
    for options in ((), ("--dequantize",)):
        done = coppice("expand", source, tmp_path / "out", "--dry-run", "--json", *options)
        said = json.loads(done.stdout)
        assert said["quantisation"] == name and said["dequantised"] is bool(options)
        sizes.append(said["weight_bytes"][1])
        done = coppice("expand", source, tmp_path / "out", "--dry-run", *options)
        assert name in done.stdout and ("dequantised" in done.stdout) is bool(options), done.stdout
    assert sizes[1] > sizes[0]


def test_transformers_loads_it(plain, tmp_path):
    family, source, _, quantization = make("compressed_fp8_channel", plain, tmp_path)
    assert coppice("expand", source, tmp_path / "out", "--dequantize", "--router-init", "copy").returncode == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert not any("scale" in name for name in model.state_dict())
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    assert torch.isfinite(logits).all()


def test_parts_and_shards_give_the_same_bytes(plain, tmp_path):
    _, source, _, _ = make("compressed_int4_asymmetric", plain, tmp_path)
    shards = ("--dequantize", "--max-shard-bytes", "20000")
    assert coppice("expand", source, tmp_path / "whole", *shards, "--threads", "1").returncode == 0
    for part in ("1/2", "2/2"):
        done = coppice("expand", source, tmp_path / "parts", *shards, "--part", part)
        assert done.returncode == 0, done.stderr
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "parts" / file.name).read_bytes(), file.name


def test_a_changed_weight_does_not_pass_verify(plain, tmp_path):
    _, source, _, _ = make("fp8_block", plain, tmp_path)
    assert coppice("expand", source, tmp_path / "out", "--dequantize").returncode == 0
    tensors = read(tmp_path / "out")
    last = max(name for name in tensors if ".experts.7." in name)
    tensors[last].view(torch.uint8).view(-1)[-1] ^= 1
    rewrite(tmp_path / "out", tensors)
    done = coppice("verify", source, tmp_path / "out")
    assert done.returncode == 1 and last in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("form", OTHERS)
def test_other_forms_are_refused_by_name(plain, tmp_path, form):
    _, source, name, _ = make(form, plain, tmp_path)
    done = coppice("expand", source, tmp_path / "out", "--dequantize")
    assert done.returncode == 3 and name in done.stderr and "--dequantize" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_quantised_is_refused(plain, tmp_path):
    done = coppice("expand", plain[1], tmp_path / "out", "--dequantize")
    assert done.returncode == 2 and "no effect" in done.stderr, done.stderr


def test_a_tensor_of_unknown_purpose_is_refused(plain, tmp_path):
    _, source, name, _ = make("modelopt_nvfp4", plain, tmp_path)
    tensors = read(source)
    extra = {key.replace(".input_scale", ".pre_quant_scale"): torch.rand(32) for key in tensors if key.endswith(".input_scale")}
    rewrite(source, {**tensors, **extra})
    done = coppice("expand", source, tmp_path / "out", "--dequantize")
    assert done.returncode == 3 and "pre_quant_scale" in done.stderr and name in done.stderr, done.stderr


def test_values_that_are_no_numbers_are_refused(plain, tmp_path):
    _, source, _, _ = make("fp8_block", plain, tmp_path)
    tensors = read(source)
    name = "model.layers.2.mlp.experts.2.up_proj.weight"
    tensors[name].view(torch.uint8)[3, 5] = 0x7F
    rewrite(source, tensors)
    done = coppice("expand", source, tmp_path / "out", "--dequantize")
    assert done.returncode == 3 and f"'{name}': nan at row 3, column 5" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_an_order_that_leads_outside_is_refused(plain, tmp_path):
    _, source, _, _ = make("compressed_int4_ordered", plain, tmp_path)
    tensors = read(source)
    name = next(name for name in tensors if name.endswith("g_idx"))
    tensors[name][3] = 1000
    rewrite(source, tensors)
    done = coppice("expand", source, tmp_path / "out", "--dequantize")
    assert done.returncode == 3 and f"'{name}': column 3 is in group 1000" in done.stderr, done.stderr


def test_parts_that_do_not_fit_are_all_listed(plain, tmp_path):
    _, source, _, _ = make("fp8_block", plain, tmp_path)
    tensors = read(source)
    names = [name for name in tensors if name.endswith("experts.0.up_proj.weight_scale_inv")]
    tensors.update({name.replace("experts.0", f"experts.{expert}"): torch.ones(5, 7) for name in names for expert in range(4)})
    rewrite(source, tensors)
    done = coppice("expand", source, tmp_path / "out", "--dequantize")
    assert done.returncode == 3 and f"{4 * len(names)} tensors" in done.stderr and names[0] in done.stderr, done.stderr


def test_undo_says_that_weights_stay_in_bf16(plain, tmp_path):
    _, source, _, _ = make("fp8_block", plain, tmp_path)
    assert coppice("expand", source, tmp_path / "out", "--dequantize").returncode == 0
    done = coppice("expand", tmp_path / "out", tmp_path / "back", "--undo")
    assert done.returncode == 0 and "stay in bf16" in done.stdout, done.stdout + done.stderr


def test_mxfp4_of_gpt_oss(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    family = BY_NAME["gpt_oss"]
    family = dataclasses.replace(family, settings=dict(family.settings, intermediate_size=64))
    make_model(family, tmp_path / "plain")
    random, tensors = Random(), {}
    for name, tensor in read(tmp_path / "plain").items():
        if name.endswith("_proj") and ".experts." in name:
            experts, inputs, outputs = tensor.shape
            tensors[name + "_blocks"] = random.bytes(experts, outputs, inputs // 32, 16)
            tensors[name + "_scales"] = random.bytes(experts, outputs, inputs // 32) // 8 + 110
        else:
            tensors[name] = tensor.bfloat16()
    source = tmp_path / "source"
    source.mkdir()
    rewrite(source, tensors)
    config = dict(read_config(tmp_path / "plain"), dtype="bfloat16")
    write_config(source, dict(config, quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=["lm_head"])))
    for options in ((), ("--expert-init", "copy_noise")):
        out = tmp_path / f"out{len(options)}"
        done = coppice("expand", source, out, "--dequantize", "--router-init", "copy", *options)
        assert done.returncode == 0 and "mxfp4" in done.stdout, done.stdout + done.stderr
        done = coppice("verify", source, out)
        assert done.returncode == 0, done.stdout + done.stderr
    expected = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    for name in [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]:
        expected[name] = convert_moe_packed_tensors(tensors[name + "_blocks"], tensors[name + "_scales"]).contiguous()
    parents = json.loads((tmp_path / "out0" / "coppice.json").read_text())["steps"][-1]["parents"]
    problems = differences(grown(family, expected, parents, 8), read(tmp_path / "out0"))
    assert not problems, "\n".join(problems[:20])
    assert read_config(tmp_path / "out0")["num_local_experts"] == 8 and "quantization_config" not in read_config(tmp_path / "out0")


def test_stacked_fp8(tmp_path):
    """Experts of one tensor with scales by block, as transformers saves them for multimodal models."""
    family = BY_NAME["qwen3_vl_moe"]
    text = {**family.settings["text_config"], "moe_intermediate_size": 32}
    family = dataclasses.replace(family, settings={**family.settings, "text_config": text})
    make_model(family, tmp_path / "plain")
    random, tensors, expected = Random(), {}, {}
    for name, tensor in read(tmp_path / "plain").items():
        if name.endswith("_proj") and ".experts." in name:
            experts, outputs, inputs = tensor.shape
            tensors[name] = random.fp8(experts, outputs, inputs)
            scale = random.scales(experts, outputs // 16, inputs // 16, dtype=torch.float32)
            tensors[name + "_scale_inv"] = scale
            tensors[name + "_activation_scale"] = torch.rand(1)
            whole = scale.repeat_interleave(16, 1).repeat_interleave(16, 2)
            expected[name] = (tensors[name].float() * whole).bfloat16()
        else:
            tensors[name] = expected[name] = tensor.bfloat16()
    source = tmp_path / "source"
    source.mkdir()
    rewrite(source, tensors)
    config = read_config(tmp_path / "plain")
    write_config(source, dict(config, quantization_config=fp8_config(16), dtype="bfloat16"))
    for options in ((), ("--dequantize",)):
        out = tmp_path / f"out{len(options)}"
        done = coppice("expand", source, out, "--router-init", "copy", *options)
        assert done.returncode == 0, done.stderr
        done = coppice("verify", source, out)
        assert done.returncode == 0, done.stdout + done.stderr
        parents = json.loads((out / "coppice.json").read_text())["steps"][-1]["parents"]
        rows = (*family.rows, r"experts\.\w+_proj_scale_inv")
        stacked = dataclasses.replace(family, rows=rows)
        problems = differences(grown(stacked, expected if options else tensors, parents, 8), read(out))
        assert not problems, "\n".join(problems[:20])
