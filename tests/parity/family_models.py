"""Tiny random models of every Mixture-of-Experts family, built and saved by transformers, and what growing one must do to its files.

A family is one row: its configuration, which tensors hold one slice per expert, which configuration keys count experts, and which change of
the expanded model's configuration gives the function of the source back.
"""

import copy
import dataclasses
import json
import re

import torch
import transformers
from packaging.version import parse
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoConfig

VOCAB = 64
COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=None, head_dim=8)
BEHIND = r"(^|\.)decoder\.(block|layers)\.|^mtp\."  # numbered after the trunk
ONE_EXPERT = re.compile(r"\.experts\.(?:expert_)?(\d+)\.")  # one tensor per expert
LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block)\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Family:
    name: str
    settings: dict
    rows: tuple  # regexes of tensors whose axis 0 counts experts
    experts: str = "num_experts"  # configuration key of their number, the one on disk
    top_k: str = "num_experts_per_tok"
    model_type: str = ""  # the name, if empty
    num_experts: int = 4
    scope: str = ""  # sub-configuration that holds the keys
    common: bool = True  # the settings are added to COMMON
    auto: str = "AutoModelForCausalLM"
    flat: str = ""  # regex of tensors that stack the experts' rows: axis 0 is experts * width
    columns: str = ""  # regex of tensors whose axis 1 counts experts
    tail: int = 0  # trailing router rows that are no experts
    aliases: tuple = ()  # further keys for the number of experts, that other writers put beside `experts`
    rename: tuple = ()  # (regex, replacement): transformers saves names that differ from those of released files
    # Function preservation, docs/families.md, "Routing classes".
    wide: str = "top_k"  # what to do besides K * m, see `same_function_again` of the test; "" = nothing gives the function back
    top_1: str = "exact"  # plain copies at K = 1: exact, down (exact once down is multiplied by m) or "" (no)
    mtp: str = ""  # prefix of a multi-token-prediction layer to be added to the files
    bidirectional: bool = False  # the model wants decoder tokens as well
    since: str = ""  # the version of transformers that can make it, "" = any that runs these tests
    top_k_fixed: bool = False  # tensors have the size of the number of experts per token

    @property
    def missing(self):
        """Why the installed transformers cannot make it; empty if it can."""
        if self.since and parse(transformers.__version__) < parse(self.since):
            return f"{self.name} takes transformers {self.since}, not {transformers.__version__}"
        types = [self.type, *([self.text_type] if self.scope == "text_config" else [])]
        unknown = [name for name in types if name not in CONFIG_MAPPING]
        return f"transformers {transformers.__version__} has no model type {unknown[0]}" if unknown else ""

    @property
    def type(self):
        return self.model_type or self.name

    @property
    def text_type(self):
        """The model type of the part that has the experts: what coppice lists families by."""
        return self.settings.get("text_config", {}).get("model_type", self.type)

    def scoped(self, config):
        return config[self.scope] if self.scope else config


def routed(name, **more):
    """Families of deepseek_v3's kind: sigmoid, selection bias, top-K, renormalised, scaled."""
    settings = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
                    topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5)
    settings.update(more.pop("settings", {}))
    settings = {key: value for key, value in settings.items() if value is not None}
    rows = more.pop("rows", (r"mlp\.gate\.weight", r"mlp\.gate\.e_score_correction_bias"))
    return Family(name, settings, rows, **{"experts": "n_routed_experts", **more})


LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4)
GROUPS = dict(n_routed_experts=8, n_group=2, topk_group=1)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
LOCAL = dict(num_local_experts=4, num_experts_per_tok=2)
SPARSE = dict(mlp_layer_types=["dense", "sparse", "sparse"])
LINEAR = dict(linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
              layer_types=["linear_attention", "full_attention", "linear_attention"])
MAMBA = dict(mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
GATE = (r"mlp\.gate\.weight",)
GRANITE = (r"block_sparse_moe\.router\.layer\.weight", r"block_sparse_moe\.(input|output)_linear\.weight")
LLAMA4 = (r"feed_forward\.router\.weight", r"feed_forward\.experts\.(gate_up|down)_proj")
STACKED = (r"mlp\.gate\.weight", r"mlp\.experts\.(gate_up|down)_proj")
GEMMA4_SIZES = dict(num_experts=4, top_k_experts=2, moe_intermediate_size=24, enable_moe_block=True, hidden_size_per_layer_input=0,
                    vocab_size_per_layer_input=VOCAB, layer_types=["sliding_attention", "full_attention", "full_attention"])
GEMMA4 = (r"router\.proj\.weight", r"router\.per_expert_scale", r"experts\.(gate_up|down)_proj")

VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
MULTIMODAL_ROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
QWEN_VISION = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16)
PIXTRAL = dict(VISION, model_type="pixtral", image_size=16, patch_size=4, head_dim=8)
SAM = dict(hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=16, mlp_dim=16, window_size=2,
           global_attn_indexes=[0])

# of several families of transformers 5.24
BIASED = (r"mlp\.gate\.weight", r"mlp\.gate\.e_score_correction_bias")
BIASED_STACKED = (*BIASED, r"mlp\.experts\.(gate_up|down)_proj")
W13 = (r"mlp\.gate\.weight", r"mlp\.gate\.bias", r"mlp\.experts\.w(13|2)_weight")
SHARED_ONE = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1)
INDEXER = dict(index_topk=64, index_head_dim=8, index_n_heads=2)
LARA = ["linear_attention", "full_attention", "sliding_attention"]
MINIMAX_M3 = dict(LOCAL, intermediate_size=24, dense_intermediate_size=48, shared_intermediate_size=40, rotary_dim=8, **SPARSE)
HYBRID = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
              d_rel=4, rel_extent=16, layer_types=["hybrid_sliding", "hybrid", "hybrid"])
INKLING = dict(HYBRID, n_shared_experts=2, **SPARSE)
INKLING2 = dict(HYBRID, unpadded_vocab_size=VOCAB, n_layers_per_attn_res_block=2)
INKLING2_VISION = dict(patch_size=4, posemb_grid_size=4, projection_hidden_dim=32, text_hidden_size=32)
QWEN4 = dict(MOE, shared_expert_intermediate_size=40, hc_count=2, hc_lowrank=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=16,
             indexer_compress_ratio=2, rope_parameters=MULTIMODAL_ROPE,
             **dict(LINEAR, layer_types=["linear_attention", "indexed_attention", "linear_attention"]))


def wrapper(name, text_type, text, rows, vision, more=None, **row):
    """A multimodal family: the text part is one of the others, nested in text_config."""
    parts = dict(text_config={**COMMON, "model_type": text_type, **text}, vision_config=vision)
    settings = dict(parts, bos_token_id=None, eos_token_id=None, **(more or {}))
    return Family(name, settings, rows, scope="text_config", common=False, **{"auto": "AutoModelForImageTextToText", **row})


FAMILIES = [
    # softmax, top-K
    Family("mixtral", LOCAL, (r"block_sparse_moe\.gate\.weight",), "num_local_experts"),
    Family("qwen2_moe", dict(MOE, shared_expert_intermediate_size=40, decoder_sparse_step=2), GATE, top_1="down"),
    Family("qwen3_moe", dict(MOE, mlp_only_layers=[1], norm_topk_prob=True), GATE, "num_local_experts", aliases=("num_experts",)),
    Family("qwen3_moe_raw_gates", dict(MOE, norm_topk_prob=False), GATE, "num_local_experts", model_type="qwen3_moe", top_1="down"),
    Family("olmoe", dict(num_experts=4, num_experts_per_tok=2), GATE, top_1="down"),
    Family("flex_olmo", dict(num_experts=4, num_experts_per_tok=2), GATE, top_1="down"),
    Family("mellum", dict(MOE, mlp_layer_types=["dense", "sparse", "sparse"], norm_topk_prob=True,
                          layer_types=["full_attention", "sliding_attention", "full_attention"]), GATE, "num_local_experts",
           aliases=("num_experts",)),
    Family("qwen3_next", dict(MOE, shared_expert_intermediate_size=40, **LINEAR), GATE, mtp="mtp.layers.0."),
    Family("qwen3_5_moe_text", dict(MOE, shared_expert_intermediate_size=40, **LINEAR), GATE, mtp="mtp.layers.0."),
    Family("minimax", dict(LOCAL, layer_types=["full_attention", "linear_attention", "full_attention"], block_size=8),
           (r"block_sparse_moe\.gate\.weight",), "num_local_experts"),
    Family("jamba", dict(num_experts=4, num_experts_per_tok=2, num_hidden_layers=4, expert_layer_period=2, expert_layer_offset=1,
                         attn_layer_period=2, attn_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False),
           (r"feed_forward\.router\.weight",), top_1="down"),
    Family("dbrx", dict(vocab_size=VOCAB, d_model=32, n_heads=4, n_layers=2, max_seq_len=64,
                        attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0),
                        ffn_config=dict(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2, moe_normalize_expert_weights=1.0)),
           (r"ffn\.router\.layer\.weight",), "moe_num_experts", "moe_top_k", scope="ffn_config", common=False,
           flat=r"ffn\.experts\.mlp\.(w1|v1|w2)"),
    Family("hunyuan_v1_moe", dict(num_experts=4, moe_topk=2), (r"mlp\.gate\.wg\.weight",), top_k="moe_topk"),
    Family("gemma4_text", GEMMA4_SIZES, GEMMA4, top_k="top_k_experts"),
    Family("deepseek_v2", dict(LATENT, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=2,
                               first_k_dense_replace=1, topk_method="greedy", routed_scaling_factor=1.5), GATE, "n_routed_experts",
           top_1="down"),
    Family("deepseek_v2_groups", dict(LATENT, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1,
                                      topk_method="group_limited_greedy", **GROUPS), GATE, "n_routed_experts", model_type="deepseek_v2",
           num_experts=8, top_1="down"),
    # top-K, softmax
    Family("gpt_oss", dict(LOCAL, layer_types=["sliding_attention", "full_attention", "full_attention"]),
           (r"mlp\.router\.(weight|bias)", r"mlp\.experts\.(gate_up|down)_proj(_bias)?"), "num_local_experts", aliases=("num_experts",)),
    Family("granitemoe", LOCAL, GRANITE, "num_local_experts"),
    Family("granitemoeshared", dict(LOCAL, shared_intermediate_size=24), GRANITE, "num_local_experts"),
    Family("granitemoehybrid", dict(LOCAL, shared_intermediate_size=24, layer_types=["mamba", "attention", "mamba"], **MAMBA),
           GRANITE, "num_local_experts"),
    Family("jetmoe", dict(LOCAL, kv_channels=8), (r"(mlp|self_attention\.experts)\.router\.layer\.weight",
                                                  r"(mlp|self_attention\.experts)\.(input|output)_linear\.weight"), "num_local_experts"),
    Family("cohere2_moe", dict(MOE, mlp_layer_types=["dense", "sparse", "sparse"], num_shared_experts=1), GATE),
    Family("aria_text", dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, intermediate_size=24),
           (r"mlp\.router\.weight", r"mlp\.experts\.fc[12]\.weight"), "moe_num_experts", "moe_topk"),
    # sigmoid
    Family("minimax_m2", LOCAL, (r"block_sparse_moe\.gate\.weight", r"block_sparse_moe\.e_score_correction_bias"), "num_local_experts"),
    Family("lfm2_moe", dict(MOE, num_dense_layers=1, layer_types=["conv", "full_attention", "conv"]),
           (r"feed_forward\.gate\.weight", r"feed_forward\.expert_bias")),
    Family("afmoe", dict(MOE, num_dense_layers=1, num_shared_experts=1, layer_types=["sliding_attention", "full_attention", "full_attention"]),
           (r"mlp\.router\.gate\.weight", r"mlp\.expert_bias")),
    Family("hy_v3", dict(MOE, num_shared_experts=1, **SPARSE), (r"mlp\.router\.gate\.weight", r"mlp\.expert_bias"),
           mtp="model.layers.3."),
    Family("laguna", dict(MOE, shared_expert_intermediate_size=40, num_attention_heads_per_layer=[4, 4, 4],
                          layer_types=["full_attention", "sliding_attention", "full_attention"], **SPARSE),
           (r"mlp\.gate\.weight", r"mlp\.experts\.e_score_correction_bias")),
    Family("llama4_text", dict(LOCAL, num_experts_per_tok=1, intermediate_size=24, intermediate_size_mlp=48, interleave_moe_layer_step=2,
                               num_hidden_layers=4), LLAMA4, "num_local_experts", wide="down"),
    routed("deepseek_v3", settings=LATENT, mtp="model.layers.3."),
    routed("deepseek_v3_raw_gates", model_type="deepseek_v3", settings=dict(LATENT, norm_topk_prob=False), wide="scaling"),
    routed("deepseek_v3_groups", model_type="deepseek_v3", settings=dict(LATENT, **GROUPS), num_experts=8, wide="dormant", top_1=""),
    routed("glm4_moe", mtp="model.layers.3."),
    routed("glm4_moe_groups", model_type="glm4_moe", settings=GROUPS, num_experts=8, wide="dormant", top_1=""),
    routed("glm4_moe_lite", settings=dict(LATENT, **SPARSE)),
    routed("dots1", settings=dict(norm_topk_prob=False), wide="scaling"),
    routed("dots1_groups", model_type="dots1", settings=dict(GROUPS, norm_topk_prob=False), num_experts=8, wide="dormant", top_1=""),
    routed("solar_open"),
    routed("mimo_v2_flash", settings=dict(SPARSE, v_head_dim=8, layer_types=["full_attention", "sliding_attention", "full_attention"])),
    routed("exaone_moe", settings=dict(SPARSE, n_routed_experts=None, num_experts=4, n_shared_experts=None, num_shared_experts=1,
                                       layer_types=["sliding_attention", "full_attention", "full_attention"]),
           experts="num_experts", rows=(r"mlp\.gate\.weight", r"mlp\.e_score_correction_bias")),
    routed("kimi_linear", settings=dict(LATENT, n_routed_experts=None, num_experts=4, num_experts_per_tok=None, num_experts_per_token=2,
                                        n_shared_experts=None, num_shared_experts=1, linear_head_dim=8,
                                        linear_num_heads=4, layer_types=["linear_attention", "full_attention", "linear_attention"], **SPARSE),
           experts="num_experts", top_k="num_experts_per_token",
           rows=(r"block_sparse_moe\.gate\.weight", r"block_sparse_moe\.gate\.e_score_correction_bias")),
    routed("nemotron_h", settings=dict(layers_block_type=["linear_attention", "moe", "full_attention", "moe"], mamba_num_heads=4,
                                       mamba_head_dim=16, ssm_state_size=8, n_groups=1, chunk_size=8, moe_shared_expert_intermediate_size=40,
                                       use_mamba_kernels=False),
           rows=(r"mixer\.gate\.weight", r"mixer\.gate\.e_score_correction_bias")),
    # others
    Family("ernie4_5_moe", dict(moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1, moe_layer_start_index=1,
                                moe_layer_end_index=2, moe_layer_interval=1), GATE, "moe_num_experts", "moe_k",
           columns=r"mlp\.moe_statics\.e_score_correction_bias", wide="selection_bias", top_1=""),
    Family("phimoe", LOCAL, (r"block_sparse_moe\.gate\.weight",), "num_local_experts", wide="", top_1=""),
    Family("zaya", dict(num_experts=4, num_experts_per_tok=1, moe_intermediate_size=24, router_hidden_size=8,
                        num_hidden_layers=2), (r"gate\.router_mlp\.out_proj\.weight", r"gate\.balancing_biases", r"experts\.(gate_up|down)_proj"),
           tail=1, wide="", top_1=""),
    Family("longcat_flash", dict(LATENT, n_routed_experts=4, moe_topk=2, zero_expert_num=2, expert_ffn_hidden_size=24, ffn_hidden_size=48,
                                 num_layers=2), (r"mlp\.router\.classifier\.(weight|bias)", r"mlp\.router\.e_score_correction_bias"),
           "n_routed_experts", "moe_topk", tail=2, wide="", top_1=""),
    Family("switch_transformers", dict(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
                                       num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4, expert_capacity=64),
           (r"mlp\.router\.classifier\.weight",), common=False, auto="AutoModelForSeq2SeqLM", bidirectional=True, wide="", top_1=""),
    Family("nllb_moe", dict(vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
                            encoder_attention_heads=4, decoder_attention_heads=4, encoder_sparse_step=2, decoder_sparse_step=2,
                            num_experts=4, expert_capacity=64, max_position_embeddings=64, router_bias=True),
           (r"ffn\.router\.classifier\.(weight|bias)",), model_type="nllb-moe", common=False, auto="AutoModelForSeq2SeqLM",
           bidirectional=True, wide="", top_1=""),
    # multimodal wrappers
    wrapper("llama4", "llama4_text", dict(LOCAL, num_experts_per_tok=1, intermediate_size=24, intermediate_size_mlp=48, pad_token_id=0),
            LLAMA4, dict(VISION, vision_output_dim=32, image_size=16, patch_size=4, projector_input_dim=32, projector_output_dim=32),
            experts="num_local_experts", wide="down"),
    wrapper("qwen3_vl_moe", "qwen3_vl_moe_text", dict(MOE, rope_parameters=MULTIMODAL_ROPE), STACKED,
            dict(QWEN_VISION, deepstack_visual_indexes=[0]), experts="num_local_experts", aliases=("num_experts",)),
    wrapper("qwen3_5_moe", "qwen3_5_moe_text", dict(MOE, shared_expert_intermediate_size=40, **LINEAR), GATE, QWEN_VISION),
    wrapper("glm4v_moe", "glm4v_moe_text", dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1,
                                                rope_parameters=dict(MULTIMODAL_ROPE, partial_rotary_factor=1.0)),
            (r"mlp\.gate\.weight", r"mlp\.gate\.e_score_correction_bias"),
            dict(depth=1, hidden_size=16, num_heads=2, image_size=16, patch_size=4, out_hidden_size=32, intermediate_size=16),
            experts="n_routed_experts"),
    wrapper("gemma4", "gemma4_text", dict(GEMMA4_SIZES, pad_token_id=0), GEMMA4, None,
            dict(audio_config=None, image_token_id=60, video_token_id=61, audio_token_id=62), top_k="top_k_experts"),
    wrapper("aria", "aria_text", dict(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1, intermediate_size=24),
            (r"mlp\.router\.weight", r"mlp\.experts\.fc[12]\.weight"), dict(VISION, image_size=16, patch_size=4),
            dict(projector_patch_to_query_dict={16: 4}), experts="moe_num_experts", top_k="moe_topk"),
    wrapper("kimi_k25", "deepseek_v3", dict(LATENT, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1,
                                            first_k_dense_replace=1, n_group=1, topk_group=1),
            (r"mlp\.gate\.weight", r"mlp\.gate\.e_score_correction_bias"),
            dict(VISION, patch_size=4, pos_emb_height=4, pos_emb_width=4), experts="n_routed_experts",
            rename=(r"^language_model\.model\.blocks\.", "language_model.model.layers.")),
    wrapper("kimi_k25_blocks", "deepseek_v3", dict(LATENT, first_k_dense_replace=1, n_group=1, topk_group=1, **SHARED_ONE), BIASED,
            dict(VISION, patch_size=4, pos_emb_height=4, pos_emb_width=4), experts="n_routed_experts", model_type="kimi_k25"),
]

# Model types that came with transformers 5.24, or whose configuration is another one there than in versions before.
SINCE_5_24 = [
    routed("bailing_hybrid", settings=dict(LATENT, n_routed_experts=None, num_experts=4, num_experts_per_tok=None, num_experts_per_token=2,
                                           n_shared_experts=None, num_shared_experts=1, layer_group_size=3, q_lora_rank=None, num_mtp_layers=0),
           experts="num_experts", top_k="num_experts_per_token", rows=(r"mlp\.gate\.weight", r"mlp\.gate\.expert_bias")),
    Family("beam", dict(MOE, n_group=1, topk_group=1, routed_scaling_factor=1.5,
                        layer_types=["sliding_attention", "sliding_attention", "full_attention"], **SPARSE), BIASED),
    Family("beam_groups", dict(MOE, num_experts=8, n_group=2, topk_group=1, layer_types=["sliding_attention", "full_attention", "full_attention"],
                               **SPARSE), BIASED, model_type="beam", num_experts=8, wide="dormant", top_1=""),
    Family("flint", dict(MOE, shared_expert_intermediate_size=40, mlp_only_layers=[0]), GATE),
    Family("flint_raw_gates", dict(MOE, shared_expert_intermediate_size=40, mlp_only_layers=[0], norm_topk_prob=False), GATE, model_type="flint",
           wide="down"),
    Family("kolibri1", dict(num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40),
           (r"mlp\.gate\.weight", r"moe\.router\.expert_bias"), "num_local_experts", wide="down"),
    Family("lara_mini", dict(MOE, shared_expert_intermediate_size=40, **dict(LINEAR, layer_types=LARA)), STACKED),
    Family("deepseek_v4", dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
                               q_lora_rank=16, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, o_groups=2,
                               o_lora_rank=8, mlp_layer_types=["hash_moe", "moe", "moe"], max_position_embeddings=64, partial_rotary_factor=0.5,
                               layer_types=["heavily_compressed_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
                               compress_rates=dict(compressed_sparse_attention=2, heavily_compressed_attention=4), hc_mult=2, **INDEXER),
           (r"ffn\.gate\.(weight|bias)",), "n_routed_experts", common=False, wide="", top_1="", top_k_fixed=True),
    routed("hy_v4", settings=dict(LATENT, hc_mult=2, **SPARSE, **INDEXER), rows=BIASED_STACKED),
    Family("minimax_m3_vl_text", MINIMAX_M3, BIASED_STACKED, "num_local_experts", auto="MiniMaxM3VLForCausalLM"),
    Family("inkling_text", INKLING, BIASED_STACKED, "n_routed_experts", auto="InklingForCausalLM", tail=2, wide=""),
    Family("inkling2_text", INKLING2, W13, "n_routed_experts", auto="Inkling2ForCausalLM"),
    Family("qwen4_exp_text", QWEN4, GATE, auto="Qwen4ExpForCausalLM"),
    routed("sarvam_mla", settings=dict(LATENT, q_lora_rank=None)),
    routed("sarvam_moe", rows=(r"mlp\.gate\.weight", r"mlp\.gate\.expert_bias")),
    Family("openai_privacy_filter", dict(LOCAL, intermediate_size=24),
           (r"mlp\.router\.(weight|bias)", r"mlp\.experts\.(gate_up|down)_proj(_bias)?"), "num_local_experts",
           auto="AutoModelForTokenClassification"),
    wrapper("mistral3", "mistral4", dict(LATENT, head_dim=16, **SHARED_ONE), STACKED, dict(PIXTRAL), dict(spatial_merge_size=1, image_token_index=60),
            experts="n_routed_experts"),
    wrapper("mistral_large4", "mistral_large4_text", dict(LATENT, **SHARED_ONE, **INDEXER), (r"layers\.\d+\.gate\.weight",), dict(PIXTRAL),
            dict(spatial_merge_size=1, image_token_index=60), experts="n_routed_experts"),
    wrapper("hy_v4_vl", "hy_v4_vl_text", dict(LATENT, hc_mult=2, rope_parameters=MULTIMODAL_ROPE, **SHARED_ONE, **SPARSE, **INDEXER), BIASED_STACKED,
            dict(VISION, patch_size=4, out_hidden_size=32, max_image_size=16), dict(image_token_id=60, video_token_id=61),
            experts="n_routed_experts"),
    wrapper("minimax_m3_vl", "minimax_m3_vl_text", MINIMAX_M3, (r"block_sparse_moe\.gate\.weight", r"block_sparse_moe\.e_score_correction_bias"),
            dict(VISION, hidden_size=24, image_size=16, patch_size=4),
            dict(projector_hidden_size=32, image_token_index=60, video_token_index=61), experts="num_local_experts"),
    wrapper("muse_spark", "muse_spark_text", dict(LOCAL, moe_intermediate_size=24, moe_hidden_size=16,
                                                  layer_types=["full_attention", "sliding_attention", "full_attention"], **SPARSE), BIASED_STACKED,
            dict(VISION, patch_size=4, pos_emb_height=4, pos_emb_width=4),
            dict(out_hidden_size=32, projector_hidden_size=32, image_token_id=60, video_token_id=61, audio_token_id=62,
                 audio_config=dict(patch_sizes=[4, 2, 2, 2], hidden_sizes=[4] * 4, depths=[1] * 4, out_hidden_size=32)),
            experts="num_local_experts"),
    wrapper("inkling_mm_model", "inkling_text", INKLING, W13,
            dict(text_hidden_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
            dict(audio_config=dict(n_mel_bins=4, mel_vocab_size=8, text_hidden_size=32), image_token_id=60, audio_token_id=61,
                 image_bos_token_id=62, audio_bos_token_id=63), experts="n_routed_experts", tail=2, wide=""),
    wrapper("inkling2", "inkling2_text", INKLING2, W13, dict(VISION, **INKLING2_VISION), dict(image_token_id=60), experts="n_routed_experts"),
    wrapper("inkling2_loop", "inkling2_loop_text", dict(INKLING2, n_layers_per_attn_res_block=1, loop_layer_index_start=1, loop_layer_index_end=2,
                                                        loop_num_passes=2, loop_gate_rank=4), W13,
            dict(VISION, model_type="inkling2_vision", **INKLING2_VISION), dict(image_token_id=60), experts="n_routed_experts"),
    wrapper("qwen4_exp", "qwen4_exp_text", QWEN4, GATE, QWEN_VISION,
            dict(image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63)),
    wrapper("step3p7", "step3p5", dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, share_expert_dim=40, pad_token_id=0, sliding_window=16,
                                       moe_router_scaling_factor=1.5, **SPARSE),
            (r"moe\.gate\.weight", r"moe\.router_bias", r"moe\.(gate|up|down)_proj\.weight"),
            dict(VISION, image_size=16, patch_size=4, max_position_embeddings=16), dict(image_token_id=60), experts="n_routed_experts"),
    wrapper("glm5_next", "glm5_next_text", dict(dict(LATENT, qk_rope_head_dim=0), linear_head_dim=8, linear_num_heads=4, pad_token_id=0, index_kpool=2,
                                                layer_types=["linear_attention", "indexed_attention", "linear_attention"], hc_mult=2,
                                                **SHARED_ONE, **SPARSE, **INDEXER), BIASED,
            dict(depth=1, hidden_size=16, num_heads=2, image_size=16, patch_size=4, out_hidden_size=32, intermediate_size=16,
                 projection_intermediate_size=16), dict(image_token_id=60, video_token_id=61, image_start_token_id=62, image_end_token_id=63,
                                                        video_start_token_id=62, video_end_token_id=63), experts="n_routed_experts"),
    wrapper("dots3_note", "dots3_note_text", dict(LATENT, shared_experts_intermediate_size=24, head_dim=16, layer_types=["indexed_attention"] * 3,
                                                  **SHARED_ONE, **SPARSE, **INDEXER), (r"(?<!vision)\.mlp\.gate\.weight", BIASED[1]),
            dict(VISION, num_hidden_layers=2, patch_size=4, moe_intermediate_size=16, num_local_experts=4, num_experts_per_tok=2,
                 mlp_layer_types=["dense", "sparse"], adapter_in_dim=16, adapter_out_dim=32),
            dict(audio_config=dict(VISION, adapter_input_size=16, adapter_out_dim=32, downsample_hidden_size=8, feature_size=16),
                 image_token_id=60, video_token_id=61, audio_token_id=62), experts="n_routed_experts"),
    wrapper("deepseek_ocr2", "deepseek_ocr2_text", dict(n_group=1, topk_group=1, **SHARED_ONE, **SPARSE), GATE,
            dict(sam_config=dict(SAM, downsample_channels=[16, 32]), encoder_config=dict(VISION, hidden_size=32, num_key_value_heads=2, vocab_size=64)),
            dict(image_token_id=60), experts="n_routed_experts", top_1="down"),
    wrapper("unlimited_ocr", "unlimited_ocr_text", dict(n_group=1, topk_group=1, **SHARED_ONE, **SPARSE), GATE,
            dict(sam_config=dict(SAM, downsample_channels=[16, 16]), encoder_config=dict(VISION, image_size=64, patch_size=16)),
            dict(image_token_id=60), experts="n_routed_experts", top_1="down"),
    wrapper("diffusion_gemma", "diffusion_gemma_text", dict(num_experts=4, top_k_experts=2, moe_intermediate_size=24, pad_token_id=0, global_head_dim=8,
                                                            layer_types=["sliding_attention", "full_attention", "full_attention"]), GEMMA4, None,
            dict(canvas_length=8, image_token_id=60, boi_token_id=61, eoi_token_id=62), top_k="top_k_experts", auto="DiffusionGemmaForBlockDiffusion"),
    wrapper("qwen3_omni_moe_thinker", "qwen3_omni_moe_text", dict(MOE, rope_parameters=MULTIMODAL_ROPE), GATE,
            dict(QWEN_VISION, deepstack_visual_indexes=[0]),
            dict(audio_config=dict(num_mel_bins=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, d_model=16, output_dim=32,
                                   downsample_hidden_size=8), audio_token_id=60, image_token_id=61, video_token_id=62),
            auto="Qwen3OmniMoeThinkerForConditionalGeneration"),
]
FAMILIES += [dataclasses.replace(family, since="5.24") for family in SINCE_5_24]


def configuration(family):
    settings = {**COMMON, **family.settings} if family.common else {"bos_token_id": None, "eos_token_id": None, **family.settings}
    return AutoConfig.for_model(family.type, **copy.deepcopy(settings))  # some change what they are given


def randomise(model):
    """Weights large enough that every expert matters, and routers spread so that no two experts tie."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        elif tensor.ndim < 2:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
        elif re.search(r"router|gate\.(wg\.)?weight", name):
            tensor.normal_(std=0.5)
        else:
            tensor.normal_(std=0.2)


def make_model(family, directory):
    """Saves a tiny random model of the family in F32."""
    kind = getattr(transformers, family.auto)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config  # an Auto class, or the class itself
    model = make(configuration(family), dtype=torch.float32).eval()
    randomise(model)
    model.save_pretrained(directory, max_shard_size="60KB")
    if family.rename:
        rewrite(directory, {re.sub(*family.rename, name): tensor for name, tensor in read(directory).items()})


def read(directory):
    """Every tensor of a model directory by name, bytes as they are."""
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def rewrite(directory, tensors):
    """Makes `tensors` the weights of a model directory, in one file."""
    for old in [*directory.glob("*.safetensors"), *directory.glob("*.index.json")]:
        old.unlink()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def read_config(directory):
    return json.loads((directory / "config.json").read_text())


def write_config(directory, config):
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def layer_of(name, trunk=0):
    """The layer of a tensor as the lineage counts it: decoders behind encoders, and layers for prediction, go on after the `trunk` ones."""
    found = LAYER.search(name)
    beyond = trunk if re.search(BEHIND, name) else 0
    return str(int(found.group(1)) + beyond) if found else None


def grown(family, before, parents, num_experts):
    """The tensors that a copying expansion of `before` must write; `parents` are those of the lineage, by layer."""
    trunk = 0
    if family.bidirectional or family.mtp:
        trunk = 1 + max(int(layer_of(name)) for name in before if LAYER.search(name) and not re.search(BEHIND + "|vis", name))

    def parents_of(name):
        return parents[layer_of(name, trunk)]

    count, after = family.num_experts, {}
    for name, tensor in before.items():
        expert = None if "vision" in name else ONE_EXPERT.search(name)
        if expert:
            index = int(expert.group(1))
            first = parents_of(name)
            children = [child for child, parent in enumerate(first) if parent == index]
            if index >= count:  # longcat_flash: what transformers saves for the experts that are none, behind the others
                children = [index - count + num_experts]
            for child in children:
                after[name[: expert.start(1)] + str(child) + name[expert.end(1) :]] = tensor
        elif any(re.search(rows + "$", name) for rows in family.rows):
            assert len(tensor) in (count, count + family.tail), name
            after[name] = torch.cat([tensor[parents_of(name)], tensor[count:]])
        elif family.columns and re.search(family.columns + "$", name):
            after[name] = tensor[:, parents_of(name)]
        elif family.flat and re.search(family.flat + "$", name):
            after[name] = tensor.unflatten(0, (count, -1))[parents_of(name)].flatten(0, 1)
        else:
            after[name] = tensor
    return after


def same(a, b):
    """Same type, shape and bytes (NaN included)."""
    flat = lambda tensor: tensor.contiguous().reshape(-1).view(torch.uint8)
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(flat(a), flat(b))


def differences(expected, found):
    """What is wrong with `found`, a line a tensor; empty if it is `expected`."""
    lines = [f"missing: {name}" for name in expected.keys() - found.keys()]
    lines += [f"unexpected: {name}" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if not same(expected[name], found[name]):
            lines.append(f"differs: {name} {found[name].dtype} {list(found[name].shape)}, wanted {list(expected[name].shape)}")
    return sorted(lines)


def mtp_tensors(family, tensors):
    """Tensors of a layer for multi-token prediction, named and shaped as released files have them; the numbers are random."""
    generator = torch.Generator().manual_seed(2)
    random = lambda like: torch.randn(like.shape, generator=generator).to(like.dtype)
    apart = family.mtp.startswith("mtp.")
    like = "model.layers.1." if apart else "model.layers.2."  # a layer with experts and full attention
    names = {family.mtp + name[len(like) :]: tensor for name, tensor in tensors.items() if name.startswith(like)}
    norm, embedding = tensors["model.norm.weight"], tensors["model.embed_tokens.weight"]
    join = torch.empty(norm.numel(), 2 * norm.numel())
    if apart:
        names |= {"mtp.fc.weight": join, **{f"mtp.{end}.weight": norm for end in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}}
    else:
        names |= {family.mtp + end: norm for end in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
        names |= {family.mtp + end: embedding for end in ("embed_tokens.weight", "shared_head.head.weight")}
        names[family.mtp + "eh_proj.weight"] = join
    return {name: random(tensor) for name, tensor in names.items()}
