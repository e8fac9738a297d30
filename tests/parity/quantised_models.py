"""Quantised forms of tiny models, with the names, dtypes and shapes that each library writes; the numbers in them are random.

Each function takes a matrix [out, in] and its name without `.weight`, and returns the tensors that stand for it by name. Two forms that
libraries of PyPI can read back (compressed-tensors, torchao) are checked with them where they are installed.
"""

import re

import torch

FP8 = torch.float8_e4m3fn
EXPERT_OR_ATTENTION = re.compile(r"\.(?:experts\.\d+\.|self_attn\.|shared_experts?\.)[\w.]*(?:_proj|w[123])\.weight$|kv_a_proj_with_mqa\.weight$")


class Random:
    def __init__(self, seed=4):
        self.generator = torch.Generator().manual_seed(seed)

    def bytes(self, *shape):
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=self.generator)

    def words(self, *shape):
        return torch.randint(-(2**31), 2**31, shape, generator=self.generator).to(torch.int32)

    def fp8(self, *shape):
        return (torch.randn(shape, generator=self.generator) * 20).to(FP8)

    def scales(self, *shape, dtype=torch.bfloat16):
        return (0.01 + torch.rand(shape, generator=self.generator) / 50).to(dtype)


def matrices(quantise, config):
    """A form that replaces matrices one by one: those of experts and attention."""

    def of_model(tensors, random):
        made = {}
        for name, tensor in tensors.items():
            if EXPERT_OR_ATTENTION.search(name):
                made.update(quantise(name.removesuffix(".weight"), *tensor.shape, random))
            else:
                made[name] = tensor if name.endswith("_bias") else tensor.bfloat16()
        return made, config

    return of_model


def ceil_div(a, b):
    return -(-a // b)


def block_fp8(block, scale_dtype=torch.float32):
    def quantise(name, rows, columns, random):
        scale = random.scales(ceil_div(rows, block), ceil_div(columns, block), dtype=torch.float32)
        return {name + ".weight": random.fp8(rows, columns), name + ".weight_scale_inv": scale.to(scale_dtype)}

    return quantise


def packed_int(bits=4, group=8, asymmetric=False, ordered=False):
    def quantise(name, rows, columns, random):
        groups = columns // group if group else 1
        made = {name + ".weight_packed": random.words(rows, ceil_div(columns * bits, 32)), name + ".weight_scale": random.scales(rows, groups),
                name + ".weight_shape": torch.tensor([rows, columns])}
        if asymmetric:
            made[name + ".weight_zero_point"] = random.words(ceil_div(rows * bits, 32), groups)
        if ordered:
            order = torch.randperm(columns, generator=random.generator)
            made[name + ".weight_g_idx"] = (order // group).to(torch.int32)
        return made

    return quantise


def fp8(scale_shape, dtype=torch.bfloat16, input_scale=True, integers=False, scale="weight_scale"):
    def quantise(name, rows, columns, random):
        values = random.bytes(rows, columns).view(torch.int8) if integers else random.fp8(rows, columns)
        made = {name + ".weight": values, f"{name}.{scale}": random.scales(*scale_shape(rows, columns), dtype=dtype)}
        if input_scale:
            made[name + ".input_scale"] = random.scales(*(() if input_scale == "scalar" else (1,)), dtype=dtype)
        return made

    return quantise


def compressed_fp4(group, exponents):
    def quantise(name, rows, columns, random):
        made = {name + ".weight_packed": random.bytes(rows, columns // 2)}
        if exponents:
            made[name + ".weight_scale"] = random.bytes(rows, columns // group) // 16 + 115
        else:
            made[name + ".weight_scale"] = (1 + 100 * random.scales(rows, columns // group)).to(FP8)
            made[name + ".weight_global_scale"] = 100 / random.scales(1, dtype=torch.float32)
            made[name + ".input_global_scale"] = 100 / random.scales(1, dtype=torch.float32)
        return made

    return quantise


def modelopt_nvfp4(name, rows, columns, random):
    made = {name + ".weight": random.bytes(rows, columns // 2), name + ".weight_scale": (1 + 100 * random.scales(rows, columns // 16)).to(FP8),
            name + ".weight_scale_2": random.scales(dtype=torch.float32), name + ".input_scale": random.scales(dtype=torch.float32)}
    if name.endswith(("k_proj", "v_proj")):  # of the cache of keys and values
        made[f"{name}.{name[-6]}_scale"] = random.scales(dtype=torch.float32)
    return made


def gptq(name, rows, columns, random, group=8):
    groups = columns // group
    return {name + ".qweight": random.words(columns // 8, rows), name + ".qzeros": random.words(groups, rows // 8),
            name + ".scales": random.scales(groups, rows, dtype=torch.float16),
            name + ".g_idx": (torch.arange(columns) // group).to(torch.int32)}


def awq(name, rows, columns, random, group=8):
    groups = columns // group
    return {name + ".qweight": random.words(columns, rows // 8), name + ".qzeros": random.words(groups, rows // 8),
            name + ".scales": random.scales(groups, rows, dtype=torch.float16)}


def bitsandbytes_nf4(name, rows, columns, random):
    blocks = ceil_div(rows * columns, 64)
    weight = name + ".weight"
    return {weight: random.bytes(rows * columns // 2, 1), weight + ".absmax": random.bytes(blocks),
            weight + ".quant_map": torch.linspace(-1, 1, 16), weight + ".nested_absmax": random.scales(ceil_div(blocks, 256), dtype=torch.float32),
            weight + ".nested_quant_map": torch.linspace(-1, 1, 256),
            weight + ".quant_state.bitsandbytes__nf4": torch.tensor(list(b'{"quant_type": "nf4", "blocksize": 64}'), dtype=torch.uint8)}


def bitsandbytes_int8(name, rows, columns, random):
    return {name + ".weight": random.bytes(rows, columns).view(torch.int8), name + ".SCB": random.scales(rows, dtype=torch.float32),
            name + ".weight_format": torch.tensor(0, dtype=torch.uint8)}


def torchao_int4(name, rows, columns, random):
    return {name + "._weight_qdata": random.bytes(rows, columns).view(torch.int8), name + "._weight_scale": random.scales(rows, columns // 8),
            name + "._weight_zero_point": random.bytes(rows, columns // 8).view(torch.int8)}


def quanto(name, rows, columns, random):
    return {name + ".weight._data": random.bytes(rows, columns).view(torch.int8), name + ".weight._scale": random.scales(rows, 1),
            name + ".input_scale": random.scales(), name + ".output_scale": random.scales()}


def hqq(name, rows, columns, random):
    return {name + ".W_q": random.bytes(rows // 2, columns), name + ".scale": random.scales(rows, 1), name + ".zero": random.scales(rows, 1),
            name + ".nbits": torch.tensor(4), name + ".group_size": torch.tensor(64), name + ".shape": torch.tensor([rows, columns])}


def vptq(name, rows, columns, random):
    return {name + ".centroids.weight": random.scales(1, 256 * 8), name + ".indices": random.words(1, rows, columns // 8),
            name + ".weight_scale": random.scales(columns), name + ".weight_bias": random.scales(columns)}


def compressed(kind, bits, strategy, form, more=None, **of_config):
    weights = {**dict(num_bits=bits, type=kind, strategy=strategy, symmetric=True, dynamic=False), **(more or {})}
    group = dict(targets=["Linear"], weights=weights, input_activations=None, output_activations=None)
    return dict(quant_method="compressed-tensors", format=form, quantization_status="compressed", config_groups={"group_0": group},
                ignore=["lm_head", "re:.*mlp.gate$", "model.layers.0.mlp.gate"], kv_cache_scheme=None, **of_config)


def fp8_config(block):
    return dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[block, block],
                modules_to_not_convert=["lm_head", "model.embed_tokens"])


FOUR_BITS = dict(bits=4, group_size=8)
FORMS = {  # name: (function of tensors and Random that gives tensors and quantization_config, what messages call it)
    "fp8_block": (matrices(block_fp8(16), fp8_config(16)), "fp8"),
    "fp8_block_bf16_scales": (matrices(block_fp8(16, torch.bfloat16), fp8_config(16)), "fp8"),
    "compressed_int4": (matrices(packed_int(), compressed("int", 4, "group", "pack-quantized", dict(group_size=8))), "compressed-tensors int4"),
    "compressed_int4_channel": (matrices(packed_int(group=0), compressed("int", 4, "channel", "pack-quantized")), "compressed-tensors int4"),
    "compressed_int4_asymmetric": (matrices(packed_int(asymmetric=True), compressed("int", 4, "group", "pack-quantized",
                                                                                   dict(group_size=8, symmetric=False))),
                                   "compressed-tensors int4"),
    "compressed_int4_ordered": (matrices(packed_int(ordered=True), compressed("int", 4, "group", "pack-quantized",
                                                                             dict(group_size=8, actorder="group"))), "compressed-tensors int4"),
    "compressed_int8_packed": (matrices(packed_int(8), compressed("int", 8, "group", "pack-quantized", dict(group_size=8))),
                               "compressed-tensors int8"),
    "compressed_fp8_tensor": (matrices(fp8(lambda r, c: (1,)), compressed("float", 8, "tensor", "float-quantized")), "compressed-tensors float8"),
    "compressed_fp8_channel": (matrices(fp8(lambda r, c: (r, 1), input_scale=False), compressed("float", 8, "channel", "float-quantized")),
                               "compressed-tensors float8"),
    "compressed_fp8_block": (matrices(fp8(lambda r, c: (ceil_div(r, 16), ceil_div(c, 16)), input_scale=False),
                                      compressed("float", 8, "block", "float-quantized", dict(block_structure=[16, 16]))),
                             "compressed-tensors float8"),
    "compressed_int8": (matrices(fp8(lambda r, c: (r, 1), integers=True, input_scale=False), compressed("int", 8, "channel", "int-quantized")),
                        "compressed-tensors int8"),
    "compressed_nvfp4": (matrices(compressed_fp4(16, False), compressed("float", 4, "tensor_group", "nvfp4-pack-quantized",
                                                                        dict(group_size=16))), "compressed-tensors float4"),
    "compressed_mxfp4": (matrices(compressed_fp4(32, True), compressed("float", 4, "group", "mxfp4-pack-quantized", dict(group_size=32))),
                         "compressed-tensors float4"),
    "modelopt_nvfp4": (matrices(modelopt_nvfp4, dict(quant_method="modelopt", quant_algo="NVFP4", ignore=["lm_head", "model.layers.0.mlp.gate"],
                                                     kv_cache_scheme=dict(dynamic=False, num_bits=8, type="float"))), "modelopt NVFP4"),
    "modelopt_fp8": (matrices(fp8(lambda r, c: (), torch.float32, "scalar"), dict(quant_method="modelopt", quant_algo="FP8",
                                                                                exclude_modules=["lm_head"])), "modelopt FP8"),
    "gptq": (matrices(gptq, dict(quant_method="gptq", desc_act=False, sym=True, checkpoint_format="gptq", **FOUR_BITS,
                                 dynamic={"-:.*mlp\\.gate$": {}, "-:lm_head": {}})), "gptq int4"),
    "awq": (matrices(awq, dict(quant_method="awq", version="gemm", zero_point=True, modules_to_not_convert=["gate"], **FOUR_BITS)),
            "awq int4"),
    "bitsandbytes_nf4": (matrices(bitsandbytes_nf4, dict(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                                         bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["lm_head", "gate"])),
                         "bitsandbytes nf4"),
    "bitsandbytes_int8": (matrices(bitsandbytes_int8, dict(quant_method="bitsandbytes", load_in_8bit=True, llm_int8_threshold=6.0)),
                          "bitsandbytes int8"),
    "torchao": (matrices(torchao_int4, dict(quant_method="torchao", quant_type={"default": {"_type": "IntxWeightOnlyConfig", "_version": 2,
                                                                                           "_data": {}}})), "torchao"),
    "quanto": (matrices(quanto, dict(quant_method="quanto", weights="int8")), "quanto"),
    "hqq": (matrices(hqq, dict(quant_method="hqq", quant_config={"weight_quant_params": {"nbits": 4, "group_size": 64}})), "hqq"),
    "vptq": (matrices(vptq, dict(quant_method="vptq", config_for_layers={})), "vptq"),
}
