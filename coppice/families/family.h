#pragma once

// A model family is data: which tensor is what, which configuration keys count what, how it routes.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::families {

/// What a tensor is for. Shapes are as on disk, [out, in]. Part of random-number keys: never renumber.
enum class Role : uint8_t {
  kEmbedding = 0, kLmHead = 1, kFinalNorm = 2,
  kInputNorm = 3, kPostAttentionNorm = 4,
  kQuery = 5, kQueryBias = 6, kKey = 7, kKeyBias = 8, kValue = 9, kValueBias = 10,
  kAttentionOutput = 11, kAttentionOutputBias = 12, kQueryNorm = 13, kKeyNorm = 14,
  kDenseGate = 15, kDenseUp = 16, kDenseDown = 17,
  kSharedGate = 18, kSharedUp = 19, kSharedDown = 20,
  kSharedExpertGate = 21,  ///< qwen2_moe: sigmoid gate [1, model] on the shared expert
  kRouter = 22, kRouterBias = 23,
  kSelectionBias = 24,     ///< loss-free balancing: added for the top-K choice only
  kExpertGate = 25, kExpertUp = 26, kExpertDown = 27,
  kExpertShared = 28,      ///< what one expert's tensors share in random-number keys; no tensor has it
};
std::string_view role_name(Role role);
bool is_expert(Role role);  ///< kExpertGate, kExpertUp, kExpertDown

/// A size that the configuration gives.
enum class Dim : uint8_t {
  kVocab, kModel, kQueryRows /* heads * head_dim */, kKeyValueRows, kHeadDim,
  kDenseWidth, kExpertWidth, kSharedWidth, kExperts, kOne,
};

/// When a tensor is there. Rules that name {L} are also bound to a kind of layer.
enum class When : uint8_t {
  kAlways, kIfUntied, kIfQkvBias, kIfOutputBias, kIfQkNorm,
  kDenseLayer, kMoeLayer, kMoeLayerIfShared,
};

struct TensorRule {
  std::string_view name;       ///< template with {L} (layer) and {X} (expert)
  Role role;
  std::span<const Dim> shape;
  When when = When::kAlways;
};

/// How a router turns logits z into K choices and gates.
enum class GateFunction : uint8_t {
  kSoftmaxTopK,  ///< softmax over all experts, then top-K
  kTopKSoftmax,  ///< top-K of z, then softmax over the K
  kSigmoidTopK,  ///< sigmoid(z) + selection bias for the choice, sigmoid(z) for the gate
};

/// A yes or no that a family fixes or reads from its configuration.
struct Switch {
  enum class Kind : uint8_t { kNo, kYes, kKey } kind = Kind::kNo;
  std::string_view key = {};
  bool fallback = false;  ///< value if the key is absent
};

/// Which layers have experts.
enum class LayerPattern : uint8_t {
  kNoMoe,        ///< dense family
  kEveryLayer,
  kSparseStep,   ///< mlp_only_layers and decoder_sparse_step
  kFirstDense,   ///< first_k_dense_replace, later layers are MoE
};

enum class QkNorm : uint8_t { kNone, kPerHead /* over head_dim */, kWhole /* over all heads at once (olmoe) */ };

struct Family {
  std::string_view model_type;
  std::string_view architecture;  ///< "MixtralForCausalLM"
  std::span<const TensorRule> tensors;

  // Experts. Empty for dense families.
  std::span<const std::string_view> experts_keys = {};  ///< canonical first; all present are read and rewritten
  std::string_view top_k_key = {};
  std::string_view expert_width_key = {};
  std::string_view shared_width_key = {};  ///< width itself (qwen2_moe), or ...
  std::string_view shared_count_key = {};  ///< ... a number of experts' widths (glm4_moe)
  std::string_view dense_width_key = "intermediate_size";
  LayerPattern layers = LayerPattern::kNoMoe;

  // Routing.
  GateFunction gate = GateFunction::kSoftmaxTopK;
  Switch renormalise = {};                 ///< the K gates are divided by their sum
  bool has_groups = false;                 ///< n_group, topk_group
  bool has_routed_scaling = false;         ///< routed_scaling_factor
  double renormalise_epsilon = 0;          ///< added to the sum (glm4_moe: 1e-20)
  double aux_loss_fallback = 0;            ///< router_aux_loss_coef if absent

  // Attention.
  Switch qkv_bias = {};
  Switch output_bias = {};
  QkNorm qk_norm = QkNorm::kNone;
  Switch qk_norm_on = {Switch::Kind::kYes};  ///< glm4_moe: use_qk_norm
  bool has_partial_rotary = false;           ///< partial_rotary_factor
  double partial_rotary_fallback = 1.0;
  std::string_view clip_qkv_key = {};
  int64_t head_dim_fallback = 0;             ///< if head_dim is absent; 0 = hidden_size / heads
  bool tie_fallback = false;                 ///< tie_word_embeddings if absent
  double rope_theta_fallback = 10000.0;
  double rms_eps_fallback = 1e-6;

  bool has_moe() const { return layers != LayerPattern::kNoMoe; }
};

/// Every family of this build. A new one is one file with its table and one line in all.cpp.
std::span<const Family* const> all_families();

/// Throws   Error{kUnsupported} naming the nearest and listing all if `model_type` is unknown.
const Family& family_of(std::string_view model_type);

}  // namespace coppice::families
