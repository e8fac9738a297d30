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
  kExpertGateUp = 35,      ///< gate and up in one tensor
  kExpertGateUpBias = 36,  ///< their biases in one tensor
  kExpertCompanion = 37,   ///< belongs to an expert's matrix and goes with it as it is: block scales of fp8 and mxfp4
  kExpertScale = 38,       ///< one value for each expert beside the router (gemma4), always its parent's
  kAttentionExpert = 39,   ///< an expert inside attention (jetmoe), always its parent's
  kAttentionRouter = 40,   ///< the router of those, always its parent's rows
  kEmbeddings = 41,        ///< this and the following: parts carried over whole, which surgery does not look into
  kAttention = 42,
  kDense = 43,
  kShared = 44,
  kRouterTrunk = 45,  ///< layers of a router below the one that has a row for each expert
  kNorm = 46,
  kOther = 47,
  kQueryDown = 48,  ///< latent attention: the query to its latent, its norm and the way back up
  kQueryDownBias = 49,
  kQueryLatentNorm = 50,
  kQueryUp = 51,
  kKeyValueDown = 52,  ///< keys and values to their latent, with the turned part of the keys behind it
  kKeyValueDownBias = 53,
  kKeyValueLatentNorm = 54,
  kKeyValueUp = 55,
  kSinks = 56,          ///< a score for each head that takes its share of the softmax and has no value
  kSharedGateUp = 57,   ///< gate and up in one tensor
  kQueryKeyValue = 58,  ///< all three in one tensor
  kDenseGateUp = 59,
  kTiedCopy = 60,  ///< another tensor once more, which the configuration ties to it: carried over, never read
};
inline constexpr size_t kNumRoles = 61;
std::string_view role_name(Role role);
bool is_expert(Role role);  ///< every expert has its own: matrices, their biases and what goes with them
bool has_rows(Role role);   ///< a row (or value) for each expert: routers, their biases, scales
bool is_router(Role role);  ///< kRouter, kRouterBias, kSelectionBias
bool is_norm(Role role);    ///< weights that multiply; 1 in a new model
bool is_bias(Role role);    ///< vectors that are added; 0 in a new model

/// The parts of a model that parameters and bytes are counted by.
enum class Part : uint8_t { kEmbeddings, kAttention, kDense, kShared, kRouters, kExperts, kNorms, kOther };
inline constexpr Part kParts[] = {Part::kEmbeddings, Part::kAttention, Part::kDense, Part::kShared,
                                  Part::kRouters,    Part::kExperts,   Part::kNorms, Part::kOther};
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
  kHeads,
  kValueRows,           ///< heads * dimensions of a value
  kExpertGateUpRows,    ///< 2 * expert width
  kSharedGateUpRows,    ///< 2 * shared width
  kDenseGateUpRows,     ///< 2 * dense width
  kQueryKeyValueRows,   ///< query rows and twice the key-value rows
  kQueryLatent,         ///< latent attention: size of the query's latent
  kKeyValueLatent,      ///< of the latent of keys and values
  kKeyValueLatentRows,  ///< that and the turned part of the keys
  kKeyValueUpRows,      ///< heads * (unturned dimensions of a key + dimensions of a value)
};

/// A shape in symbols, one to three dimensions: `{kExperts, kModel}`. Empty: any shape will do.
class Shape {
 public:
  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<Dim> dims) : count_(dims.size()) {
    size_t i = 0;
    for (const Dim d : dims) dims_.at(i++) = d;  // at(): a fourth dimension does not compile
  }
  constexpr const Dim* begin() const { return dims_.data(); }
  constexpr const Dim* end() const { return dims_.data() + count_; }
  constexpr size_t size() const { return count_; }

 private:
  std::array<Dim, 3> dims_{};
  size_t count_ = 0;
};

/// When a tensor is there. Rules that name {L} hold for each layer apart.
enum class When : uint8_t {
  kAlways,
  kIfUntied,
  kIfQkvBias,
  kIfOutputBias,
  kIfQkNorm,
  kIfQueryLatent,
  kIfNoQueryLatent,
  kIfQueryLatentAndBias,
  kDenseLayer,
  kDenseLayerIfBias,
  kMoeLayer,
  kMoeLayerIfShared,  ///< nothing at a shared width of 0, where other families have tensors without elements
  kOptional,          ///< never expected, taken where it is
};

/// How the matrices of experts lie in a tensor.
struct Layout {
  bool stacked = false;      ///< one tensor has all experts', along its first dimension
  bool transposed = false;   ///< each matrix is [in, out]
  bool interleaved = false;  ///< of a fused tensor: gate and up alternate, gate first; else gate is the first half
};
inline constexpr Layout kStacked{.stacked = true};
inline constexpr Layout kStackedInOut{.stacked = true, .transposed = true};
inline constexpr Layout kStackedInterleaved{.stacked = true, .interleaved = true};
inline constexpr Layout kStackedInOutInterleaved{.stacked = true, .transposed = true, .interleaved = true};

/// A name (or many) and what the tensor is. Templates have {L} for the layer, {M} for a layer counted from the last one
/// on (multi-token prediction, the decoder behind an encoder), {X} for the expert, {N} for a number without meaning,
/// `*` for any text without a dot and `**` for any text.
struct TensorRule {
  std::string_view name;
  Role role;
  Shape shape = {};
  When when = When::kAlways;
  Layout layout = {};
  bool centred = false;  ///< a norm that multiplies by 1 + weight

  constexpr bool per_layer() const {
    return name.find("{L}") != std::string_view::npos || name.find("{M}") != std::string_view::npos;
  }
  constexpr bool per_expert() const { return name.find("{X}") != std::string_view::npos; }
};

/// A part of tensor names that is another one in a second layout of the same model.
struct Rename {
  std::string_view from, to;
};

/// How a router turns logits z into K choices and gates.
enum class GateFunction : uint8_t {
  kSoftmaxTopK,  ///< softmax over all experts, then top-K
  kTopKSoftmax,  ///< top-K of z, then softmax over the K
  kSigmoidTopK,  ///< sigmoid(z) + selection bias for the choice, sigmoid(z) for the gate
  kUnknown,      ///< a family file that does not say it
};

/// A yes or no that a family fixes or reads from its configuration.
struct Switch {
  enum class Kind : uint8_t { kNo, kYes, kKey, kUnknown } kind = Kind::kNo;
  std::string_view key = {};
  bool fallback = false;  ///< value if the key is absent

  static constexpr Switch yes() { return {Kind::kYes, {}, true}; }
  static constexpr Switch unknown() { return {Kind::kUnknown, {}, false}; }  ///< a family file that does not say it
  static constexpr Switch read(std::string_view key, bool fallback) { return {Kind::kKey, key, fallback}; }
};

/// Which layers have experts.
enum class LayerPattern : uint8_t {
  kNoMoe,  ///< dense family
  kEveryLayer,
  kSparseStep,  ///< mlp_only_layers and decoder_sparse_step
  kFirstDense,  ///< first_k_dense_replace, later layers are MoE
  kByTypes,     ///< mlp_layer_types; without it as kFirstDense with the fallback
  kByWeights,   ///< those whose tensors are there
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  ///< over head_dim
  kWhole,    ///< over all heads at once (olmoe)
};

/// Which layers have local attention where sliding_window is a number (and the family's switch is on).
enum class SlidingWindow : uint8_t {
  kNever,  ///< the family's code does not look at the key
  kIfSet,  ///< every layer
  // Those that layer_types names, and without it ...
  kLastLayers,   ///< ... those from max_window_layers on (qwen2)
  kFirstLayers,  ///< ... every second one below max_window_layers (qwen2_moe)
  kAlternating,  ///< ... every second one (gpt_oss)
};

/// Activation of feed-forward layers: silu(gate) * up unless said otherwise.
enum class Activation : uint8_t {
  kSilu,
  kClampedSilu,  ///< gate and up clamped, gate * sigmoid(1.702 gate) * (up + 1) (gpt_oss, whatever hidden_act says)
  kGelu,         ///< gelu(gate) * up, by tanh (gemma)
};

/// Configuration keys of factors; empty: the factor is 1.
struct Multipliers {
  std::string_view embedding = {};  ///< times the embeddings
  bool sqrt_embedding = false;      ///< the embeddings times the square root of their width
  std::string_view attention = {};  ///< the softmax scale itself, in place of 1 / sqrt(head_dim)
  std::string_view residual = {};   ///< times what a layer adds
  std::string_view logits = {};     ///< the logits are divided by it
};

/// What sets a router apart where its gate function does not say it.
enum class RouterKind : uint8_t {
  kPlain,
  kScalesInput,     ///< the gate multiplies the expert's input (llama4)
  kSparseMixer,     ///< the second choice is made among what the first leaves (phimoe)
  kCapacity,        ///< each expert takes so many tokens and no more (switch, nllb)
  kTrailingChoices  ///< choices that are not experts stand behind them: skip, identity (zaya, longcat)
};

/// What a router group is scored by.
enum class GroupScore : uint8_t {
  kBestTwo,  ///< the sum of its two best experts (deepseek_v3)
  kBest,     ///< its best expert (deepseek_v2)
};

/// Sizes that a checkpoint's shapes follow from have no fallback: a configuration without them is an error.
/// Fallbacks are those of transformers 5.17.0 (configuration_<model_type>.py).
struct Family {
  std::string_view model_type;
  std::string_view architecture;  ///< "MixtralForCausalLM"
  std::span<const TensorRule> tensors;

  /// Surgery only: `tensors` names experts, routers and what lies beside them, `trunk` the rest by patterns; no shape
  /// but those of experts and routers is looked at, the weights say which layers have experts, and `nn` cannot compute
  /// it. The rows of experts and routers count for every layer that has any.
  bool surgery_only = false;
  std::span<const TensorRule> trunk = {};  ///< searched after `tensors`
  /// Names of tensors as transformers has them in memory, and writes with save_original_format=False, where they are not
  /// those of `tensors`: the first that occurs in a name counts. See packed_layout.h.
  std::span<const Rename> memory_names = {};
  /// Values that transformers takes where a configuration leaves keys out that nothing here reads and that change what a
  /// model computes, as JSON: rotary embeddings (theta is 10000 if neither this nor rope_theta_fallback says another),
  /// attention windows and chunks. For `verify`.
  std::string_view left_out = {};
  bool has_mtp = false;  ///< layers past the last one may follow, with experts or without (multi-token prediction)
  std::string_view layers_key = "num_hidden_layers";
  std::string_view model_dim_key = "hidden_size";

  // Experts. Empty for dense families. A key may lead into an object: "ffn_config.moe_top_k".
  /// Aliases; a new configuration gets the first, all present are rewritten.
  std::span<const std::string_view> experts_keys = {};
  std::string_view top_k_key = {};
  bool counts_by_layer = false;        ///< these counts may be lists, a number for each layer (hunyuan_v1_moe)
  int64_t fixed_top_k = 0;             ///< not 0: the code does not look at any key
  std::string_view trailing_key = {};  ///< choices behind the experts: their number, or ...
  int64_t trailing_choices = 0;        ///< ... always so many
  std::string_view expert_width_key = {};
  std::string_view shared_width_key = {};                  ///< width itself (qwen2_moe), or ...
  std::string_view shared_count_key = {};                  ///< ... a number of experts' widths (glm4_moe)
  std::string_view dense_width_key = "intermediate_size";  ///< empty where every layer is MoE
  LayerPattern layers = LayerPattern::kNoMoe;
  int64_t first_dense_fallback = 0;  ///< dense layers in front if first_k_dense_replace or mlp_layer_types is absent

  // Routing.
  GateFunction gate = GateFunction::kSoftmaxTopK;
  Switch renormalise = {};              ///< the K gates are divided by their sum, or ...
  std::string_view gate_norm_key = {};  ///< ... by their p-norm if this is a number p, by nothing if it is null (dbrx)
  RouterKind router = RouterKind::kPlain;
  Switch selection_bias_on = Switch::yes();  ///< lfm2_moe: use_expert_bias; without it a stored bias is not added
  bool has_groups = false;                   ///< n_group, topk_group
  bool from_file = false;                    ///< a family file's: what it does not name is not known
  bool says_groups = true;                   ///< false of a family file that does not say whether there are groups
  std::string_view num_groups_key = "n_group", top_groups_key = "topk_group";
  int64_t num_groups_fallback = 1, top_groups_fallback = 1;
  GroupScore group_score = GroupScore::kBestTwo;
  bool group_score_known = true;          ///< false: a family file that does not say it
  std::string_view groups_on_key = {};    ///< groups count only if this key ...
  std::string_view groups_on_value = {};  ///< ... has this value (deepseek_v2: topk_method)
  std::string_view sigmoid_key = {};      ///< the gate is a sigmoid if this key is "sigmoid" (cohere2_moe)
  bool has_routed_scaling = false;        ///< the key below
  std::string_view routed_scaling_key = "routed_scaling_factor";
  double routed_scaling_fallback = 1;
  double renormalise_epsilon = 0;        ///< added to the sum (glm4_moe: 1e-20)
  std::string_view aux_loss_key = {};    ///< coefficient of the balancing loss
  double aux_loss_fallback = 0;          ///< the same if absent; 0 where transformers has no balancing loss
  bool selection_bias_stays_f32 = true;  ///< where there is one: transformers keeps it in f32 in a bf16 model too
                                         ///< (_keep_in_fp32_modules_strict); else small steps of it are rounded away

  // Attention and feed-forward.
  Switch qkv_bias = {};
  Switch output_bias = {};
  Switch mlp_bias = {};
  QkNorm qk_norm = QkNorm::kNone;
  Switch qk_norm_on = Switch::yes();  ///< glm4_moe: use_qk_norm
  bool fixed_head_dim = false;        ///< the heads together are as wide as the model (olmoe)
  bool has_partial_rotary = false;    ///< partial_rotary_factor or rotary_dim; `nn` refuses them elsewhere
  double partial_rotary_fallback = 1.0;
  std::string_view clip_qkv_key = {};
  bool has_latent_attention = false;   ///< q_lora_rank, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim
  Switch rope_interleaved = {};        ///< the pairs that turn together lie side by side
  std::string_view default_rope = {};  ///< rope_parameters, as JSON, of a configuration without them
  bool renamed_rope = false;           ///< rope types "su" and "yarn" are longrope (phi3)
  int64_t original_positions_fallback = 0;  ///< original_max_position_embeddings if absent; 0 = max_position_embeddings
  Activation activation = Activation::kSilu;
  std::string_view hidden_act_fallback = "silu";
  bool tied_fallback = false;  ///< tie_word_embeddings if absent
  Multipliers multipliers = {};
  SlidingWindow sliding_window = SlidingWindow::kNever;
  Switch sliding_window_on = Switch::yes();
  int64_t sliding_window_fallback = 0;      ///< sliding_window if absent; 0 = none
  int64_t max_window_layers_fallback = 28;  ///< max_window_layers if absent
  int64_t kv_heads_fallback = 0;            ///< num_key_value_heads if absent; 0 = as many as query heads
  int64_t head_dim_fallback = 0;            ///< head_dim if absent; 0 = hidden_size / heads
  int64_t max_positions_fallback = 0;
  double rope_theta_fallback = 10000.0;
  double rms_eps_fallback = 1e-6;

  bool has_moe() const { return layers != LayerPattern::kNoMoe; }
  bool has_shared() const { return !shared_width_key.empty() || !shared_count_key.empty(); }
  bool has_role(Role role) const;
};

/// Every family of this build. A new one is one file with its table and one line in all.cpp.
std::span<const Family* const> all_families();

/// Throws   Error{kUnsupported}: naming the nearest and listing all if `model_type` is unknown; with the reason if the
///          family cannot grow by copying.
const Family& family_of(std::string_view model_type);
const Family* find_family(std::string_view model_type);  ///< nullptr if unknown

}  // namespace coppice::families
