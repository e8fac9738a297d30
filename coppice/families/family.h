#pragma once

// A model family is data: which tensor is what, which configuration keys count what, how it routes.

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::families {

/// What a tensor is for. Shapes are as on disk, [out, in]. Part of random-number keys: never renumber.
enum class Role : uint8_t {
  kEmbedding = 0,
  kLmHead = 1,
  kFinalNorm = 2,
  kInputNorm = 3,
  kPostAttentionNorm = 4,
  kQuery = 5,
  kQueryBias = 6,
  kKey = 7,
  kKeyBias = 8,
  kValue = 9,
  kValueBias = 10,
  kAttentionOutput = 11,
  kAttentionOutputBias = 12,
  kQueryNorm = 13,
  kKeyNorm = 14,
  kDenseGate = 15,
  kDenseUp = 16,
  kDenseDown = 17,
  kSharedGate = 18,
  kSharedUp = 19,
  kSharedDown = 20,
  kSharedExpertGate = 21,  ///< qwen2_moe: sigmoid gate [1, model] on the shared expert
  kRouter = 22,
  kRouterBias = 23,
  kSelectionBias = 24,  ///< loss-free balancing: added for the top-K choice only; F32 on disk in every dtype
  kExpertGate = 25,
  kExpertUp = 26,
  kExpertDown = 27,
  kExpertShared = 28,  ///< what one expert's tensors share in random-number keys; no tensor has it
  kDenseGateBias = 29,
  kDenseUpBias = 30,
  kDenseDownBias = 31,
  kExpertGateBias = 32,
  kExpertUpBias = 33,
  kExpertDownBias = 34,
};
std::string_view role_name(Role role);
bool is_expert(Role role);  ///< a tensor that every expert has one of: its matrices and their biases
bool is_norm(Role role);    ///< weights that multiply; 1 in a new model
bool is_bias(Role role);    ///< vectors that are added; 0 in a new model

/// The parts of a model that parameters and bytes are counted by.
enum class Part : uint8_t { kEmbeddings, kAttention, kDense, kShared, kRouters, kExperts, kNorms };
inline constexpr Part kParts[] = {Part::kEmbeddings, Part::kAttention, Part::kDense, Part::kShared,
                                  Part::kRouters,    Part::kExperts,   Part::kNorms};
Part part_of(Role role);
std::string_view part_name(Part part);  ///< "experts"

/// A size that the configuration gives.
enum class Dim : uint8_t {
  kVocab,
  kModel,
  kQueryRows,     ///< heads * head_dim
  kKeyValueRows,  ///< key-value heads * head_dim
  kHeadDim,
  kDenseWidth,
  kExpertWidth,
  kSharedWidth,
  kExperts,
  kOne,
};

/// A shape in symbols, one to three dimensions: `{kExperts, kModel}`.
class Shape {
 public:
  constexpr Shape(std::initializer_list<Dim> dims) : count_(dims.size()) {
    size_t i = 0;
    for (const Dim d : dims) dims_.at(i++) = d;  // at(): a fourth dimension does not compile
  }
  constexpr const Dim* begin() const { return dims_.data(); }
  constexpr const Dim* end() const { return dims_.data() + count_; }
  constexpr size_t size() const { return count_; }

 private:
  std::array<Dim, 3> dims_{};
  size_t count_;
};

/// When a tensor is there. Rules that name {L} hold for each layer apart.
enum class When : uint8_t {
  kAlways,
  kIfUntied,
  kIfQkvBias,
  kIfOutputBias,
  kIfQkNorm,
  kDenseLayer,
  kDenseLayerIfBias,
  kMoeLayer,
};

struct TensorRule {
  std::string_view name;  ///< template with {L} (layer) and {X} (expert)
  Role role;
  Shape shape;
  When when = When::kAlways;

  constexpr bool per_layer() const { return name.find("{L}") != std::string_view::npos; }
  constexpr bool per_expert() const { return name.find("{X}") != std::string_view::npos; }
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

  static constexpr Switch yes() { return {Kind::kYes, {}, true}; }
  static constexpr Switch read(std::string_view key, bool fallback) { return {Kind::kKey, key, fallback}; }
};

/// Which layers have experts.
enum class LayerPattern : uint8_t {
  kNoMoe,  ///< dense family
  kEveryLayer,
  kSparseStep,  ///< mlp_only_layers and decoder_sparse_step
  kFirstDense,  ///< first_k_dense_replace, later layers are MoE
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  ///< over head_dim
  kWhole,    ///< over all heads at once (olmoe)
};

/// Which configuration key turns local attention on.
enum class SlidingWindow : uint8_t {
  kNever,       ///< the family's code does not look at the key
  kIfSet,       ///< sliding_window is a number
  kIfSwitched,  ///< use_sliding_window is true, or layer_types names such a layer
};

/// Sizes that a checkpoint's shapes follow from have no fallback: a configuration without them is an error.
/// Fallbacks are those of transformers 5.17.0 (configuration_<model_type>.py).
struct Family {
  std::string_view model_type;
  std::string_view architecture;  ///< "MixtralForCausalLM"
  std::span<const TensorRule> tensors;

  // Experts. Empty for dense families.
  std::span<const std::string_view> experts_keys =
      {};  ///< aliases; a new configuration gets the first, all present are rewritten
  std::string_view top_k_key = {};
  std::string_view expert_width_key = {};
  std::string_view shared_width_key = {};                  ///< width itself (qwen2_moe), or ...
  std::string_view shared_count_key = {};                  ///< ... a number of experts' widths (glm4_moe)
  std::string_view dense_width_key = "intermediate_size";  ///< empty where every layer is MoE
  LayerPattern layers = LayerPattern::kNoMoe;
  int64_t first_dense_fallback = 0;  ///< first_k_dense_replace if absent

  // Routing.
  GateFunction gate = GateFunction::kSoftmaxTopK;
  Switch renormalise = {};          ///< the K gates are divided by their sum
  bool has_groups = false;          ///< n_group, topk_group
  bool has_routed_scaling = false;  ///< routed_scaling_factor
  double renormalise_epsilon = 0;   ///< added to the sum (glm4_moe: 1e-20)
  bool has_aux_loss = false;        ///< router_aux_loss_coef
  double aux_loss_fallback = 0;     ///< router_aux_loss_coef if absent

  // Attention and feed-forward.
  Switch qkv_bias = {};
  Switch output_bias = {};
  Switch mlp_bias = {};
  QkNorm qk_norm = QkNorm::kNone;
  Switch qk_norm_on = Switch::yes();  ///< glm4_moe: use_qk_norm
  bool has_partial_rotary = false;    ///< partial_rotary_factor; elsewhere it is ignored, as in transformers
  double partial_rotary_fallback = 1.0;
  std::string_view clip_qkv_key = {};
  SlidingWindow sliding_window = SlidingWindow::kNever;
  int64_t kv_heads_fallback = 0;  ///< num_key_value_heads if absent; 0 = as many as query heads
  int64_t head_dim_fallback = 0;  ///< head_dim if absent; 0 = hidden_size / heads
  int64_t max_positions_fallback = 0;
  double rope_theta_fallback = 10000.0;
  double rms_eps_fallback = 1e-6;

  bool has_moe() const { return layers != LayerPattern::kNoMoe; }
  bool has_shared() const { return !shared_width_key.empty() || !shared_count_key.empty(); }
  bool has_role(Role role) const;
};

/// Every family of this build. A new one is one file with its table and one line in all.cpp.
std::span<const Family* const> all_families();

/// Throws   Error{kUnsupported} naming the nearest and listing all if `model_type` is unknown.
const Family& family_of(std::string_view model_type);

}  // namespace coppice::families
