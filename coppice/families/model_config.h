#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/family.h"
#include "coppice/families/rope.h"

namespace coppice::families {

struct Routing {
  GateFunction gate = GateFunction::kSoftmaxTopK;
  bool renormalise = false;
  double gate_norm = 1;  ///< p of the norm that renormalised gates are divided by; 0 if the configuration says null
  double renormalise_epsilon = 0;
  int64_t num_groups = 1;  ///< n_group
  int64_t top_groups = 1;  ///< topk_group
  double routed_scaling = 1.0;
  bool has_selection_bias = false;
  bool adds_selection_bias = true;  ///< false if the configuration turns the stored bias off
  bool bias_on_logits = false;      ///< the selection bias is added to logits
  bool has_router_bias = false;
  bool has_expert_table = false;  ///< some layers choose experts by a table of tokens (Role::kExpertTable)
  RouterKind kind = RouterKind::kPlain;
  GroupScore group_score = GroupScore::kBestTwo;
  /// False if a family file does not define it; `renormalise` and `group_score` are then meaningless.
  bool renormalise_known = true, group_score_known = true;
  bool fixed_top_k = false;      ///< no key of the configuration can change top_k
  int64_t trailing_choices = 0;  ///< rows of the router after the experts', for other choices
};

/// Latent attention: queries, keys and values are computed from latents; keys have a rotary part that all heads share.
struct LatentAttention {
  int64_t query_rank = 0;  ///< q_lora_rank; 0: queries are computed from the hidden state directly
  int64_t key_value_rank = 0;
  int64_t turned_dim = 0, plain_dim = 0;  ///< rotary and non-rotary dimensions of a query's and key's head
  int64_t value_dim = 0;
};

/// A config.json read by its family's table: every size and switch is resolved, with transformers' defaults.
struct ModelConfig {
  const Family* family = nullptr;
  Json json;  ///< the file as found

  int64_t num_layers = 0, model_dim = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, vocab_size = 0;
  int64_t dense_width = 0, expert_width = 0, shared_width = 0;  ///< 0 if there is none
  int64_t num_experts = 0, top_k = 0;                           ///< 0 for dense models; the largest over the layers
  std::vector<int64_t> top_k_by_layer = {};                     ///< [num_layers] if the configuration lists them
  std::vector<bool> moe_layer;                                  ///< [num_layers]
  Routing routing;
  bool tied = false, qkv_bias = false, output_bias = false, mlp_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  double rms_eps = 1e-6;
  Rope rope;
  std::optional<LatentAttention> latent;
  double attention_scale = 1.0;  ///< factor of query times key, before the softmax
  std::vector<int64_t>
      window;  ///< [num_layers]: number of positions that a query sees, including its own; 0: all before it
  std::optional<double> clip_qkv;  ///< olmoe
  Activation activation = Activation::kSilu;
  double embedding_multiplier = 1, residual_multiplier = 1, logits_divisor = 1;
  std::optional<double>
      aux_loss_coef;  ///< coefficient of the balancing loss; absent if neither file nor family defines one
  int64_t max_positions = 0;
  std::string dtype;  ///< dtype or torch_dtype: "bfloat16"; empty if absent
  /// Features that `nn` cannot compute exactly as transformers does (another activation, quantised weights ...);
  /// expanding is still possible.
  std::vector<std::string> unsupported_in_nn;

  /// The object of `json` that has the sizes (a multimodal model's "text_config"), or empty.
  std::string text_key;
  /// How the weights are quantised: "compressed-tensors int4 (pack-quantized)"; empty if they are not.
  std::string quantisation;
  int64_t quantised_bits = 0;  ///< bits per value; 0 if the configuration does not say

  /// Whether the weights, not this configuration, determine which tensors exist: for expand-only families, the language
  /// model inside a multimodal one, and quantised weights, which have other names or additional scales.
  bool placed_by_weights() const { return family->surgery_only || !text_key.empty() || is_quantised(); }
  bool is_quantised() const { return !quantisation.empty(); }
  int64_t top_k_of(int64_t layer) const;  ///< `top_k` of layers past the last one
  double mean_top_k() const;              ///< mean over the MoE layers
  std::string top_k_text() const;         ///< "2", or "1 to 4" if layers differ
  int64_t router_rows() const { return num_experts + routing.trailing_choices; }
  /// Rows of a tensor that has one for each expert; selection biases have none for shared experts.
  int64_t rows_of(Role role) const {
    const bool only_experts = role == Role::kSelectionBias && routing.kind == RouterKind::kSharedChoices;
    return only_experts ? num_experts : router_rows();
  }
  int64_t dim(Dim dim) const;
  std::vector<int64_t> shape(const TensorRule& rule) const;
  bool present(When when,
               int64_t layer) const;  ///< whether a rule with `when` applies in this layer (-1: outside the layers)
  bool is_moe() const { return num_experts > 0; }
  int64_t num_moe_layers() const;
};

/// Reads both generations of transformers' files: `rope_parameters` (5) and `rope_theta`, `rope_scaling` (4). A null
/// counts as absent.
///
/// Throws   Error{kFormat} naming file and key: missing, wrong type, out of range, top_k > experts, aliases that
///          disagree, more than 2^22 experts or 2^60 parameters in all. Error{kUnsupported}: unknown model_type, alone
///          and as that of a text_config (a multimodal model's); no family if `family` is given (which must outlive
///          the result).
/// Source   configuration_<model_type>.py and modeling_rope_utils.py of transformers 5.17.0.
ModelConfig read_config(const Json& config, std::string_view source, const Family* family = nullptr);

// The following functions edit existing keys: lists stay lists, and every key that repeats the number is edited too
// (aliases, copies at the top of a multimodal model's file, lists by layer). An unknown key that mentions experts and
// has the number is Error{kUnsupported}, because it may repeat the number or mean something else.

/// The configuration with `num_experts` experts.
Json with_num_experts(const ModelConfig& config, int64_t num_experts);

/// How `with_top_k_factor` changes a configuration.
struct TopKScaling {
  int64_t factor = 1;
  bool copies = true;  ///< the new experts are copies; otherwise parts of experts, and routed scaling does not change
  bool back = false;   ///< the inverse change, for an undo
};
/// The configuration after every expert was replaced by `factor` experts and top-K multiplied by `factor`. The number
/// of router groups is multiplied too (the first E of N experts are the earlier groups, followed by their copies), and
/// a routed scaling factor is divided by it if sigmoid gates are not renormalised. Undoing a division gives the
/// original number exactly.
///
/// Throws   Error{kUnsupported} if the family fixes top-K; Error{kFormat} if it cannot be divided.
Json with_top_k_factor(const ModelConfig& config, const TopKScaling& scaling);

/// The configuration with experts of `width` units; shared experts keep their width.
///
/// Throws   Error{kUnsupported} if dense layers use the same key for their width.
Json with_expert_width(const ModelConfig& config, int64_t width);

}  // namespace coppice::families
