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
  double gate_norm = 1;  ///< p of the norm that renormalised gates are divided by; 0 where the configuration says null
  double renormalise_epsilon = 0;
  int64_t num_groups = 1;  ///< n_group
  int64_t top_groups = 1;  ///< topk_group
  double routed_scaling = 1.0;
  bool has_selection_bias = false;
  bool adds_selection_bias = true;  ///< false where the configuration turns the stored one off
  bool has_router_bias = false;
  RouterKind kind = RouterKind::kPlain;
  GroupScore group_score = GroupScore::kBestTwo;
  /// False where a family file does not say it, so that `renormalise` and `group_score` mean nothing.
  bool renormalise_known = true, group_score_known = true;
  bool fixed_top_k = false;      ///< no key of the configuration can change top_k
  int64_t trailing_choices = 0;  ///< rows of the router behind the experts' that are not experts
};

/// Latent attention: queries, keys and values come out of latents, keys with a turned part that all heads share.
struct LatentAttention {
  int64_t query_rank = 0;  ///< q_lora_rank; 0: queries come straight from the model's dimension
  int64_t key_value_rank = 0;
  int64_t turned_dim = 0, plain_dim = 0;  ///< of a query's and key's head_dim: with positions, without
  int64_t value_dim = 0;
};

/// A config.json read by its family's table: every size and switch resolved, fallbacks as transformers has them.
struct ModelConfig {
  const Family* family = nullptr;
  Json json;  ///< the file as found

  int64_t num_layers = 0, model_dim = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, vocab_size = 0;
  int64_t dense_width = 0, expert_width = 0, shared_width = 0;  ///< 0 where there is none
  int64_t num_experts = 0, top_k = 0;                           ///< 0 for dense models; the largest of all layers
  std::vector<int64_t> top_k_by_layer = {};                     ///< [num_layers] where the configuration lists them
  std::vector<bool> moe_layer;                                  ///< [num_layers]
  Routing routing;
  bool tied = false, qkv_bias = false, output_bias = false, mlp_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  double rms_eps = 1e-6;
  Rope rope;
  std::optional<LatentAttention> latent;
  double attention_scale = 1.0;    ///< of query times key, before the softmax
  std::vector<int64_t> window;     ///< [num_layers]: positions that a query sees, itself counted; 0: all before it
  std::optional<double> clip_qkv;  ///< olmoe
  Activation activation = Activation::kSilu;
  double embedding_multiplier = 1, residual_multiplier = 1, logits_divisor = 1;
  std::optional<double> aux_loss_coef;  ///< of the balancing loss; absent where neither file nor family names one
  int64_t max_positions = 0;
  std::string dtype;  ///< dtype or torch_dtype: "bfloat16"; empty if absent
  /// What `nn` cannot compute exactly as transformers would (another activation, quantised weights ...); surgery does
  /// not mind.
  std::vector<std::string> unsupported_in_nn;

  /// The object of `json` that the sizes stand in (a multimodal model's "text_config"), or empty.
  std::string text_key;
  /// How the weights are quantised: "compressed-tensors int4 (pack-quantized)"; empty if they are not.
  std::string quantisation;
  int64_t quantised_bits = 0;  ///< of one value; 0 if the configuration does not say

  /// True where the weights and not this configuration say which tensors there are: families known for surgery only,
  /// the language model inside a multimodal one, and quantised weights, which have other names or scales beside them.
  bool placed_by_weights() const { return family->surgery_only || !text_key.empty() || is_quantised(); }
  bool is_quantised() const { return !quantisation.empty(); }
  int64_t top_k_of(int64_t layer) const;  ///< `top_k` of layers past the last one
  double mean_top_k() const;              ///< over the layers with experts
  std::string top_k_text() const;         ///< "2", or "1 to 4" where layers differ
  int64_t router_rows() const { return num_experts + routing.trailing_choices; }
  int64_t dim(Dim dim) const;
  std::vector<int64_t> shape(const TensorRule& rule) const;
  bool present(When when, int64_t layer) const;  ///< is a rule with `when` there in this layer (-1: outside the layers)
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

// The following edit what is found: lists stay lists, and every key that repeats the number is edited with it, wherever
// it stands (aliases, copies at the top of a multimodal model, lists by layer). A key that speaks of experts, has the
// number and is not known is Error{kUnsupported}: it may repeat the number or mean something else.

/// The configuration after its expert count became `num_experts`.
Json with_num_experts(const ModelConfig& config, int64_t num_experts);

/// How `with_top_k_factor` changes a configuration.
struct TopKScaling {
  int64_t factor = 1;
  bool copies = true;  ///< the experts became copies; else parts of experts, in which routed scaling stays
  bool back = false;   ///< the other way round
};
/// The configuration after every expert became `factor` ones and as many more are chosen: top-K times `factor`; router
/// groups too (the first E of N experts are the groups of before, then come their copies); a routed scaling factor
/// divided by it where sigmoid gates are not renormalised. What is divided comes back as it was when it is multiplied.
///
/// Throws   Error{kUnsupported} if the family fixes top-K; Error{kFormat} if it cannot be divided.
Json with_top_k_factor(const ModelConfig& config, const TopKScaling& scaling);

/// The configuration after experts became `width` units wide; shared experts keep their width.
///
/// Throws   Error{kUnsupported} where dense layers take their width from the same key.
Json with_expert_width(const ModelConfig& config, int64_t width);

}  // namespace coppice::families
