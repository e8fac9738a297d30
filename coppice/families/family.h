#pragma once

// A model family is data: the role of each tensor, the configuration keys for sizes, and the routing.

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
  kExpertShared = 28,  ///< used in random-number keys for what an expert's tensors share; no tensor has it
  kDenseGateBias = 29,
  kDenseUpBias = 30,
  kDenseDownBias = 31,
  kExpertGateBias = 32,
  kExpertUpBias = 33,
  kExpertDownBias = 34,
  kExpertGateUp = 35,      ///< gate and up in one tensor
  kExpertGateUpBias = 36,  ///< their biases in one tensor
  kExpertCompanion = 37,   ///< belongs to an expert's matrix and is copied with it: block scales of fp8 and mxfp4
  kExpertScale = 38,       ///< one value per expert beside the router (gemma4); always copied from the parent
  kAttentionExpert = 39,   ///< an expert inside attention (jetmoe); always copied from the parent
  kAttentionRouter = 40,   ///< the router of those; rows are always copied from the parent
  kEmbeddings = 41,        ///< this and the following: tensors that are copied unchanged
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
  kKeyValueDown = 52,  ///< keys and values to their latent, followed by the rotary part of the keys
  kKeyValueDownBias = 53,
  kKeyValueLatentNorm = 54,
  kKeyValueUp = 55,
  kSinks = 56,          ///< a score per head that takes a share of the softmax but has no value
  kSharedGateUp = 57,   ///< gate and up in one tensor
  kQueryKeyValue = 58,  ///< all three in one tensor
  kDenseGateUp = 59,
  kTiedCopy = 60,     ///< a stored repetition of a tensor that the configuration ties to it: copied, never read
  kExpertOther = 61,  ///< a tensor of an expert whose purpose is not known: copied, and never changed
  kExpertTable = 62,  ///< numbers of experts by token (deepseek_v4): copied, so the original experts keep their numbers
};
inline constexpr size_t kNumRoles = 63;
std::string_view role_name(Role role);
bool is_expert(Role role);        ///< tensors of single experts: matrices, their biases and companions
bool is_copied_whole(Role role);  ///< tensors of experts that no method changes: kExpertOther, companions, attention
bool has_rows(Role role);         ///< tensors with a row (or value) per expert: routers, their biases, scales
bool is_router(Role role);        ///< kRouter, kRouterBias, kSelectionBias
bool is_norm(Role role);          ///< weights that are multiplied; 1 in a new model
bool is_bias(Role role);          ///< vectors that are added; 0 in a new model

/// The components of a model, for counts of parameters and bytes.
enum class Component : uint8_t { kEmbeddings, kAttention, kDense, kShared, kRouters, kExperts, kNorms, kOther };
inline constexpr Component kComponents[] = {Component::kEmbeddings, Component::kAttention, Component::kDense,
                                            Component::kShared,     Component::kRouters,   Component::kExperts,
                                            Component::kNorms,      Component::kOther};
Component component_of(Role role);
std::string_view component_name(Component which);  ///< "experts"

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
  kKeyValueLatent,      ///< latent attention: size of the latent of keys and values
  kKeyValueLatentRows,  ///< that and the rotary part of the keys
  kKeyValueUpRows,      ///< heads * (non-rotary dimensions of a key + dimensions of a value)
};

/// A shape in symbols, one to three dimensions: `{kExperts, kModel}`. Empty: any shape.
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

/// When a tensor exists. Rules with {L} apply to each layer separately.
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
  kMoeLayerIfShared,  ///< absent if the shared width is 0, where other families have tensors without elements
  kOptional,          ///< optional: never required
};

/// How the matrices of experts are stored in a tensor.
struct Layout {
  bool stacked = false;     ///< one tensor has the matrices of all experts, along its first dimension
  bool transposed = false;  ///< each matrix is [in, out]
  /// For a fused tensor: gate and up alternate, gate first; otherwise gate is the first half.
  bool interleaved = false;
};
inline constexpr Layout kStacked{.stacked = true};
inline constexpr Layout kStackedInOut{.stacked = true, .transposed = true};
inline constexpr Layout kStackedInterleaved{.stacked = true, .interleaved = true};
inline constexpr Layout kStackedInOutInterleaved{.stacked = true, .transposed = true, .interleaved = true};

/// A name, or a pattern of names, and the role of the tensor. Templates have {L} for the layer, {M} for a layer counted
/// from the last one on (multi-token prediction, the decoder behind an encoder), {X} for the expert, {N} for a number
/// without meaning, `*` for any text without a dot and `**` for any text.
struct TensorRule {
  std::string_view name;
  Role role;
  Shape shape = {};
  When when = When::kAlways;
  Layout layout = {};
  bool centred = false;  ///< a norm that multiplies by 1 + weight
  /// Not -1: {L} counts from this layer on, and a name without {L} is of this layer. For a second list of layers.
  int64_t first_layer = -1;

  constexpr bool per_layer() const {
    return name.find("{L}") != std::string_view::npos || counts_from_last() || first_layer >= 0;
  }
  constexpr bool counts_from_last() const { return name.find("{M}") != std::string_view::npos; }
  constexpr bool per_expert() const { return name.find("{X}") != std::string_view::npos; }
};

/// A part of tensor names that differs in a second layout of the same model.
struct Rename {
  std::string_view from, to;
};

/// How a router turns logits z into K choices and gates.
enum class GateFunction : uint8_t {
  kSoftmaxTopK,       ///< softmax over all experts, then top-K
  kTopKSoftmax,       ///< top-K of z, then softmax over the K
  kSigmoidTopK,       ///< sigmoid(z) + selection bias for the choice, sigmoid(z) for the gate
  kSqrtSoftplusTopK,  ///< as kSigmoidTopK, with the square root of softplus(z), which has no upper bound (deepseek_v4)
  kUnknown,           ///< a family file that does not define it
};

/// A yes or no that a family fixes or reads from its configuration.
struct Switch {
  enum class Kind : uint8_t { kNo, kYes, kKey, kUnknown } kind = Kind::kNo;
  std::string_view key = {};
  bool fallback = false;       ///< value if the key is absent
  bool fallback_known = true;  ///< false: a family file names the key and does not say what its absence means

  static constexpr Switch yes() { return {Kind::kYes, {}, true}; }
  static constexpr Switch unknown() { return {Kind::kUnknown, {}, false}; }  ///< a family file that does not define it
  static constexpr Switch read(std::string_view key, bool fallback) { return {Kind::kKey, key, fallback}; }
  static constexpr Switch read_or_unknown(std::string_view key) { return {Kind::kKey, key, false, false}; }
};

/// Which layers have experts.
enum class LayerPattern : uint8_t {
  kNoMoe,  ///< dense family
  kEveryLayer,
  kSparseStep,  ///< mlp_only_layers and decoder_sparse_step
  kFirstDense,  ///< first_k_dense_replace, later layers are MoE
  kByTypes,     ///< mlp_layer_types; without it as kFirstDense with the fallback
  kByWeights,   ///< layers whose tensors exist
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  ///< over head_dim
  kWhole,    ///< over all heads at once (olmoe)
};

/// Which layers have local attention if sliding_window is a number (and the family's switch is on).
enum class SlidingWindow : uint8_t {
  kNever,  ///< the family's code ignores the key
  kIfSet,  ///< every layer
  // The layers in layer_types; if it is absent ...
  kLastLayers,   ///< ... those from max_window_layers on (qwen2)
  kFirstLayers,  ///< ... every second one below max_window_layers (qwen2_moe)
  kAlternating,  ///< ... every second one (gpt_oss)
};

/// Activation of feed-forward layers: silu(gate) * up unless stated otherwise.
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

/// Special kinds of routers besides the gate function.
enum class RouterKind : uint8_t {
  kPlain,
  kScalesInput,      ///< the gate multiplies the expert's input (llama4)
  kSparseMixer,      ///< the second expert is chosen among the rest (phimoe)
  kCapacity,         ///< each expert takes a limited number of tokens (switch, nllb)
  kTrailingChoices,  ///< zero/skip choices follow the experts (zaya, longcat)
  kSharedChoices  ///< shared experts have rows after the experts', and gates that add up to 1 with those chosen (inkling)
};

/// How a router group is scored.
enum class GroupScore : uint8_t {
  kBestTwo,  ///< the sum of its two best experts (deepseek_v3)
  kBest,     ///< its best expert (deepseek_v2)
};

/// Sizes that determine the shapes of a checkpoint have no fallback: a configuration without them is an error.
/// Fallbacks are the defaults of transformers 5.17.0 (configuration_<model_type>.py).
struct Family {
  std::string_view model_type;
  std::string_view architecture;  ///< "MixtralForCausalLM"
  std::span<const TensorRule> tensors;

  /// Expand only: `tensors` has the experts, routers and tensors beside them, and `trunk` has patterns for the rest.
  /// Only shapes of experts and routers are checked, the weights determine which layers have experts, and `nn` does not
  /// support the family. The rows of experts and routers apply to every layer that has any.
  bool surgery_only = false;
  std::span<const TensorRule> trunk = {};  ///< searched after `tensors`
  /// Names of tensors in transformers' memory, and written with save_original_format=False, if they differ from those
  /// of `tensors`: the first one that occurs in a name applies. See packed_layout.h.
  std::span<const Rename> memory_names = {};
  /// transformers' default values, as JSON, of keys that this table does not read but that change what a model
  /// computes: rotary embeddings (theta is 10000 unless this or rope_theta_fallback sets it), attention windows and
  /// chunks. Used by `verify`.
  std::string_view left_out = {};
  bool has_mtp = false;  ///< more layers may follow the last one, with or without experts (multi-token prediction)
  std::string_view layers_key = "num_hidden_layers";
  std::string_view model_dim_key = "hidden_size";

  // Experts. Empty for dense families. A key may lead into an object: "ffn_config.moe_top_k".
  /// Aliases; a new configuration gets the first, all present are rewritten.
  std::span<const std::string_view> experts_keys = {};
  std::string_view top_k_key = {};
  bool counts_by_layer = false;        ///< these counts may be lists with a number per layer (hunyuan_v1_moe)
  int64_t fixed_top_k = 0;             ///< not 0: the model's code ignores the configuration
  std::string_view trailing_key = {};  ///< key with the number of choices after the experts, or ...
  int64_t trailing_choices = 0;        ///< ... a fixed number of them
  std::string_view expert_width_key = {};
  std::string_view shared_width_key = {};                  ///< width itself (qwen2_moe), or ...
  std::string_view shared_count_key = {};                  ///< ... a number of experts' widths (glm4_moe)
  std::string_view dense_width_key = "intermediate_size";  ///< empty if every layer is MoE
  LayerPattern layers = LayerPattern::kNoMoe;
  int64_t first_dense_fallback = 0;  ///< dense layers in front if first_k_dense_replace or mlp_layer_types is absent

  // Routing.
  GateFunction gate = GateFunction::kSoftmaxTopK;
  Switch renormalise = {};              ///< the K gates are divided by their sum, or ...
  bool renormalises_top_1 = true;       ///< false: a single chosen expert keeps its gate (bailing_moe)
  std::string_view gate_norm_key = {};  ///< ... by their p-norm if this is a number p, by nothing if it is null (dbrx)
  RouterKind router = RouterKind::kPlain;
  Switch selection_bias_on = Switch::yes();  ///< lfm2_moe: use_expert_bias; without it a stored bias is not added
  bool bias_on_logits = false;               ///< the selection bias is added to z, not to its sigmoid (kolibri1)
  bool has_groups = false;                   ///< n_group, topk_group
  bool from_file = false;                    ///< defined by a family file: keys that it does not name are unknown
  bool is_inferred = false;                  ///< by the room infer, which has explained every tensor
  std::span<const std::string_view> named_keys = {};  ///< the keys of config.json that this file names
  bool says_groups = true;  ///< false if a family file does not define whether there are groups
  std::string_view num_groups_key = "n_group", top_groups_key = "topk_group";
  int64_t num_groups_fallback = 1, top_groups_fallback = 1;
  GroupScore group_score = GroupScore::kBestTwo;
  bool group_score_known = true;          ///< false: a family file that does not define it
  std::string_view groups_on_key = {};    ///< groups count only if this key ...
  std::string_view groups_on_value = {};  ///< ... has this value (deepseek_v2: topk_method)
  std::string_view sigmoid_key = {};      ///< the gate is a sigmoid if this key is "sigmoid" (cohere2_moe)
  bool has_routed_scaling = false;        ///< the key below
  std::string_view routed_scaling_key = "routed_scaling_factor";
  double routed_scaling_fallback = 1;
  double renormalise_epsilon = 0;        ///< added to the sum (glm4_moe: 1e-20)
  std::string_view aux_loss_key = {};    ///< coefficient of the balancing loss
  double aux_loss_fallback = 0;          ///< the same if absent; 0 if transformers has no balancing loss
  bool normalises_experts = false;       ///< the output of each expert is normalised before its gate (muse_spark)
  bool selection_bias_stays_f32 = true;  ///< if there is one: transformers keeps it in f32 also in a bf16 model
      ///< (_keep_in_fp32_modules_strict); otherwise small updates of it are lost by rounding

  // Attention and feed-forward.
  Switch qkv_bias = {};
  Switch output_bias = {};
  Switch mlp_bias = {};
  QkNorm qk_norm = QkNorm::kNone;
  Switch qk_norm_on = Switch::yes();  ///< glm4_moe: use_qk_norm
  bool fixed_head_dim = false;        ///< heads * head_dim equals the model dimension (olmoe)
  bool has_partial_rotary = false;    ///< partial_rotary_factor or rotary_dim; `nn` refuses them elsewhere
  double partial_rotary_fallback = 1.0;
  std::string_view clip_qkv_key = {};
  bool has_latent_attention = false;   ///< q_lora_rank, kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim
  Switch rope_interleaved = {};        ///< the two dimensions of a rotary pair are adjacent
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

/// Every family of this build. A new one is one TOML file in tables/ (family_file.h), or, for families that coppice
/// trains, one table in C++ and one line in all.cpp.
std::span<const Family* const> all_families();

/// Throws   Error{kUnsupported}: naming the nearest and listing all if `model_type` is unknown; with the reason if the
///          family cannot be expanded by copying experts.
const Family& family_of(std::string_view model_type);
const Family* find_family(std::string_view model_type);  ///< nullptr if unknown

}  // namespace coppice::families
