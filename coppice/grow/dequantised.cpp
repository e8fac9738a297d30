#include "coppice/grow/dequantised.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/options/options.h"

namespace coppice::grow {
namespace {

using families::Model;
using families::QuantisedTensor;
using families::TensorSlot;
using families::ValueCode;
using io::Dtype;
using Entry = io::Checkpoint::Entry;

enum class PartKind : uint8_t {
  kValues,
  kScales,
  kGlobal,
  kGlobalDivisor,
  kZeroPoints,
  kOrder,
  kShape,
  kOfActivations
};

/// A part of a quantised tensor: its name is the stem and `suffix`, the tensor's the stem and `ending`.
struct PartRule {
  std::string_view suffix;
  PartKind kind;
  std::string_view ending = {};
};

constexpr std::string_view kWeight = ".weight";
constexpr PartRule kFp8Parts[] = {{"_scale_inv", PartKind::kScales},
                                  {".input_scale", PartKind::kOfActivations},
                                  {".activation_scale", PartKind::kOfActivations},
                                  {"_activation_scale", PartKind::kOfActivations}};
constexpr PartRule kMxfp4Parts[] = {{"_blocks", PartKind::kValues}, {"_scales", PartKind::kScales}};
constexpr PartRule kCompressedParts[] = {{".weight_packed", PartKind::kValues, kWeight},
                                         {".weight_scale", PartKind::kScales, kWeight},
                                         {".weight_global_scale", PartKind::kGlobalDivisor, kWeight},
                                         {".weight_zero_point", PartKind::kZeroPoints, kWeight},
                                         {".weight_g_idx", PartKind::kOrder, kWeight},
                                         {".weight_shape", PartKind::kShape, kWeight},
                                         {".input_scale", PartKind::kOfActivations},
                                         {".input_global_scale", PartKind::kOfActivations},
                                         {".input_zero_point", PartKind::kOfActivations},
                                         {".output_scale", PartKind::kOfActivations},
                                         {".output_zero_point", PartKind::kOfActivations},
                                         {".q_scale", PartKind::kOfActivations},
                                         {".k_scale", PartKind::kOfActivations},
                                         {".v_scale", PartKind::kOfActivations}};
constexpr PartRule kModeloptParts[] = {
    {".weight_scale_2", PartKind::kGlobal, kWeight}, {".weight_scale", PartKind::kScales, kWeight},
    {"_weight_scale_2", PartKind::kGlobal},          {"_weight_scale", PartKind::kScales},
    {".input_scale", PartKind::kOfActivations},      {"_input_scale", PartKind::kOfActivations},
    {".k_scale", PartKind::kOfActivations},          {".v_scale", PartKind::kOfActivations}};

struct Method {
  std::string_view name;
  std::span<const PartRule> parts;
};
constexpr Method kMethods[] = {
    {"fp8", kFp8Parts}, {"mxfp4", kMxfp4Parts}, {"compressed-tensors", kCompressedParts}, {"modelopt", kModeloptParts}};

bool is_float8(Dtype dtype) { return dtype == Dtype::kF8E4M3 || dtype == Dtype::kF8E5M2; }

/// The parts of one tensor; no file: it has none.
struct Parts {
  std::map<PartKind, Entry> of;
  bool is_stack = false, is_turned = false;

  Entry at(PartKind kind) const {
    const auto found = of.find(kind);
    return found == of.end() ? Entry{} : found->second;
  }
};

const Json& section_of(const families::ModelConfig& config) {
  return config.text_key.empty() ? config.json : *config.json.find(config.text_key);
}

const Method& method_of(const families::ModelConfig& config) {
  const Json* quantization = families::find_quantization(config.json, section_of(config));
  const Json* name = quantization == nullptr ? nullptr : quantization->find("quant_method");
  for (const Method& method : kMethods) {
    if (name != nullptr && name->is_string() && name->as_string() == method.name) return method;
  }
  throw Error(ErrorCode::kUnsupported,
              cat("--dequantize: coppice cannot compute the values of a model quantised with ", config.quantisation,
                  "; it can those of ", kDequantisable, " (dequantise it with the program that made it)"));
}

Json without_quantisation(const Json& json) {
  Json::Object out;
  for (const auto& [key, value] : json.members()) {
    if (key != "quantization_config" && key != "compression_config") out.emplace_back(key, value);
  }
  return Json::object(std::move(out));
}

/// The sizes of blocks that the configuration gives: [rows, columns].
std::vector<std::array<int64_t, 2>> block_sizes(const Json& quantization) {
  std::vector<std::array<int64_t, 2>> sizes;
  const auto add = [&sizes](const Json* list) {
    if (list == nullptr || !list->is_array() || list->items().size() != 2) return;
    std::array<int64_t, 2> size{};
    for (size_t i = 0; i < size.size(); ++i) {
      const Json& item = list->items()[i];
      if (item.kind() != Json::Kind::kInt || item.as_int() < 1) return;
      size.at(i) = item.as_int();
    }
    sizes.push_back(size);
  };
  add(quantization.find("weight_block_size"));
  const Json* groups = quantization.find("config_groups");
  if (groups == nullptr || !groups->is_object()) return sizes;
  for (const auto& [name, group] : groups->members()) {
    const Json* weights = group.is_object() ? group.find("weights") : nullptr;
    if (weights != nullptr && weights->is_object()) add(weights->find("block_structure"));
  }
  return sizes;
}

/// Makes the tensors of one model out of their parts.
class Dequantiser {
 public:
  explicit Dequantiser(const Model& model)
      : model_(model),
        method_(method_of(model.config)),
        quantization_(*families::find_quantization(model.config.json, section_of(model.config))),
        blocks_(block_sizes(quantization_)) {
    const auto is_turned = [](const families::TensorRule& rule) {
      return families::is_expert(rule.role) && rule.layout.stacked && rule.layout.transposed;
    };
    stacks_are_transposed_ = std::ranges::any_of(model.config.family->tensors, is_turned);
    for (const TensorSlot& slot : model.slots) take(slot);
    for (const TensorSlot& slot : model.slots) {
      const auto found = parts_.find(slot.name.str());
      if (found == parts_.end() || found->second.of.contains(PartKind::kValues)) continue;
      const Entry entry = model.checkpoint.at(slot.name);
      if (io::is_float(entry.info->dtype)) continue;
      found->second.of[PartKind::kValues] = entry;
      found->second.is_turned = slot.rule->layout.transposed;
    }
  }

  std::shared_ptr<families::StoredForm> form() {
    auto form = std::make_shared<families::StoredForm>();
    form->quantisation = model_.config.quantisation;
    for (const auto& [name, parts] : parts_) {
      QuantisedTensor tensor;
      tensor.number = form->tensors.size() + 1;
      if (make(name, parts, tensor)) form->tensors.emplace(name, std::move(tensor));
    }
    refuse_unknown();
    return form;
  }

  /// The tensors of the bf16 model.
  std::vector<io::TensorInfo> tensors(const families::StoredForm& form) const {
    std::vector<io::TensorInfo> infos;
    for (const TensorSlot& slot : model_.slots) {
      if (rule_of(slot.name) != nullptr || form.tensors.contains(slot.name.view())) continue;
      infos.push_back(*model_.checkpoint.at(slot.name).info);
    }
    for (const auto& [name, tensor] : form.tensors)
      infos.push_back({.name = name, .dtype = Dtype::kBf16, .shape = tensor.shape});
    return infos;
  }

 private:
  const PartRule* rule_of(std::string_view name) const {
    for (const PartRule& rule : method_.parts) {
      if (name.ends_with(rule.suffix)) return &rule;
    }
    return nullptr;
  }

  void take(const TensorSlot& slot) {
    const PartRule* rule = rule_of(slot.name);
    if (rule == nullptr || rule->kind == PartKind::kOfActivations) return;
    const std::string_view name = slot.name.view();
    Parts& parts = parts_[cat(name.substr(0, name.size() - rule->suffix.size()), rule->ending)];
    parts.of[rule->kind] = model_.checkpoint.at(slot.name);
    parts.is_stack |= slot.rule->layout.stacked;
  }

  void refuse(const std::string& name, const std::string& what) { unknown_.push_back(cat("'", name, "': ", what)); }

  static std::string text_of(const Entry& entry) {
    return cat("'", entry.info->name, "' is ", io::dtype_name(entry.info->dtype), " ", shape_text(entry.info->shape));
  }

  /// False if the tensor has been refused.
  bool make(const std::string& name, const Parts& parts, QuantisedTensor& t) {
    t.values = parts.at(PartKind::kValues);
    t.scales = parts.at(PartKind::kScales);
    t.zero_points = parts.at(PartKind::kZeroPoints);
    t.order = parts.at(PartKind::kOrder);
    t.global_divides = parts.of.contains(PartKind::kGlobalDivisor);
    t.global_scale = t.global_divides ? parts.at(PartKind::kGlobalDivisor) : parts.at(PartKind::kGlobal);
    t.is_stack = parts.is_stack;
    if (t.values.file == nullptr || t.scales.file == nullptr) {
      refuse(name, t.values.file == nullptr ? "has scales, but no quantised values" : "has no scales");
      return false;
    }
    t.count = t.is_stack ? model_.config.num_experts : 1;
    if (!set_values(parts, t)) {
      refuse(name, cat(text_of(t.values), parts.is_turned ? ", with the matrices [in, out]" : ""));
      return false;
    }
    if (!set_scales(t) || !set_global(t) || !zero_points_fit(t) || !order_fits(t)) {
      std::vector<std::string> texts;
      for (const auto& [kind, entry] : parts.of) texts.push_back(text_of(entry));
      refuse(name, cat("is stored in parts that do not fit: ", join(texts)));
      return false;
    }
    return true;
  }

  bool set_values(const Parts& parts, QuantisedTensor& t) {
    std::vector<int64_t> shape = t.values.info->shape;
    if (t.is_stack) {
      if (shape.empty() || shape.front() != t.count) return false;
      shape.erase(shape.begin());
    }
    const Dtype dtype = t.values.info->dtype;
    constexpr int64_t kBytesOfBlock = 16;
    if (method_.name == "mxfp4") {
      if (dtype != Dtype::kU8 || shape.size() != 3 || shape[2] != kBytesOfBlock) return false;
      shape = {shape[0], shape[1] * shape[2]};
    }
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) return false;
    t.rows = shape[0];
    t.cols = shape[1];
    if (dtype == Dtype::kU8 && method_.name != "fp8") {
      t.code = ValueCode::kFloat4;
      t.cols *= 2;
    } else if (dtype == Dtype::kI32 && parts.of.contains(PartKind::kShape) && !t.is_stack) {
      t.code = ValueCode::kPackedInt;
      if (!set_packed_columns(parts.at(PartKind::kShape), t)) return false;
    } else if (dtype == Dtype::kI8 && method_.name == "compressed-tensors") {
      t.code = ValueCode::kInt8;
    } else if (is_float8(dtype)) {
      t.code = dtype == Dtype::kF8E4M3 ? ValueCode::kFloat8E4M3 : ValueCode::kFloat8E5M2;
    } else {
      return false;
    }
    if (parts.is_turned) return false;
    const bool turned =
        t.is_stack && stacks_are_transposed_ && method_.name == "mxfp4";  // which packs along the inputs
    const int64_t first = turned ? t.cols : t.rows, second = turned ? t.rows : t.cols;
    t.shape = t.is_stack ? io::TensorShape{t.count, first, second} : io::TensorShape{first, second};
    return true;
  }

  /// The columns and the bits of packed values, from the tensor that has the shape.
  bool set_packed_columns(const Entry& shape, QuantisedTensor& t) {
    const bool is_wide = shape.info->dtype == Dtype::kI64;
    if ((!is_wide && shape.info->dtype != Dtype::kI32) || shape.info->elements() != 2) return false;
    std::vector<std::byte> bytes(shape.info->bytes);
    shape.file->read(shape.info->offset, bytes);
    std::array<int64_t, 2> sizes{};
    for (size_t i = 0; i < sizes.size(); ++i) {
      int32_t narrow = 0;
      is_wide ? std::memcpy(&sizes.at(i), bytes.data() + i * sizeof(int64_t), sizeof(int64_t))
              : std::memcpy(&narrow, bytes.data() + i * sizeof narrow, sizeof narrow);
      if (!is_wide) sizes.at(i) = narrow;
    }
    constexpr int64_t kWordBits = 32;
    constexpr int64_t kMostColumns = int64_t{1} << 40;
    if (sizes[0] != t.rows || sizes[1] < 1 || sizes[1] > kMostColumns) return false;
    for (const int bits : {2, 4, 8}) {
      const int64_t in_word = kWordBits / bits;
      if ((sizes[1] + in_word - 1) / in_word != t.cols || !says_bits(bits)) continue;
      t.bits = bits;
      t.cols = sizes[1];
      return true;
    }
    return false;
  }

  /// Whether a group of the configuration has values of this width.
  bool says_bits(int64_t bits) const {
    const Json* groups = quantization_.find("config_groups");
    if (groups == nullptr || !groups->is_object()) return false;
    return std::ranges::any_of(groups->members(), [bits](const auto& member) {
      const Json* weights = member.second.is_object() ? member.second.find("weights") : nullptr;
      const Json* said = weights != nullptr && weights->is_object() ? weights->find("num_bits") : nullptr;
      return said != nullptr && said->kind() == Json::Kind::kInt && said->as_int() == bits;
    });
  }

  bool set_scales(QuantisedTensor& t) const {
    const Dtype dtype = t.scales.info->dtype;
    const bool is_exponent = dtype == Dtype::kU8 || dtype == Dtype::kF8E8M0;
    const bool is_float8 = dtype == Dtype::kF8E4M3 && t.code == ValueCode::kFloat4;
    if (!io::is_float(dtype) && !is_exponent && !is_float8) return false;
    if (method_.name == "modelopt" && is_exponent) return false;
    std::vector<int64_t> shape = t.scales.info->shape;
    const bool is_one = t.scales.info->elements() == 1;
    if (t.is_stack && !is_one) {
      if (shape.empty() || shape.front() != t.count) return false;
      shape.erase(shape.begin());
    }
    t.scales_for_all = is_one;
    if (std::ranges::all_of(shape, [](int64_t size) { return size == 1; })) {
      t.block_rows = t.rows;
      t.block_cols = t.cols;
      return true;
    }
    if (shape.size() == 1) shape.push_back(1);
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) return false;
    t.scale_rows = shape[0];
    t.scale_cols = shape[1];
    const auto parts_of = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
    for (const auto& [rows, cols] : blocks_) {
      if (t.scale_rows != parts_of(t.rows, rows) || t.scale_cols != parts_of(t.cols, cols)) continue;
      t.block_rows = rows;
      t.block_cols = cols;
      return true;
    }
    if (t.scale_rows != t.rows || t.cols % t.scale_cols != 0) return false;
    t.block_rows = 1;
    t.block_cols = t.cols / t.scale_cols;
    return true;
  }

  static bool set_global(QuantisedTensor& t) {
    const bool is_nvfp4 = t.code == ValueCode::kFloat4 && t.scales.info->dtype == Dtype::kF8E4M3;
    if (t.global_scale.file == nullptr) return !is_nvfp4;
    const int64_t elements = t.global_scale.info->elements();
    t.global_of_matrix = t.is_stack && elements == t.count;
    return t.global_scale.info->dtype == Dtype::kF32 && (elements == 1 || t.global_of_matrix) && is_nvfp4;
  }

  static bool zero_points_fit(const QuantisedTensor& t) {
    if (t.zero_points.file == nullptr) return true;
    const io::TensorInfo& info = *t.zero_points.info;
    if (t.is_stack) return false;
    if (info.dtype == Dtype::kI8 && t.code == ValueCode::kInt8) return info.elements() == t.scale_rows * t.scale_cols;
    if (info.dtype != Dtype::kI32 || t.code != ValueCode::kPackedInt) return false;
    constexpr int64_t kWordBits = 32;
    const int64_t words = (t.rows * t.bits + kWordBits - 1) / kWordBits;
    return info.shape == io::TensorShape{words, t.scale_cols} && t.block_rows == 1;
  }

  static bool order_fits(const QuantisedTensor& t) {
    if (t.order.file == nullptr) return true;
    return t.order.info->dtype == Dtype::kI32 && t.order.info->elements() == t.cols && t.block_rows == 1 && !t.is_stack;
  }

  void refuse_unknown() const {
    if (unknown_.empty()) return;
    constexpr size_t kListed = 10;
    throw Error(ErrorCode::kUnsupported,
                cat("--dequantize: coppice does not know how to compute ", unknown_.size(),
                    " tensors of this model, quantised with ", model_.config.quantisation, ": ",
                    join_some(unknown_, kListed), " (dequantise it with the program that made it)"));
  }

  const Model& model_;
  const Method& method_;
  const Json& quantization_;
  const std::vector<std::array<int64_t, 2>> blocks_;
  bool stacks_are_transposed_ = false;
  std::map<std::string, Parts> parts_;  // by the name of the tensor
  std::vector<std::string> unknown_;
};

/// Values of these types mean nothing without a scale.
bool needs_scale(Dtype dtype) {
  constexpr Dtype kCarried[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16,  Dtype::kF64, Dtype::kI64,
                                Dtype::kI32, Dtype::kI16,  Dtype::kBool, Dtype::kC64};
  return std::ranges::find(kCarried, dtype) == std::end(kCarried);
}

}  // namespace

Model dequantised(Model model) {
  if (!model.config.is_quantised()) refuse_option("dequantize", "the model is not quantised");
  if (model.checkpoint.files().has_folder(io::kTrainerFolder)) {
    throw Error(ErrorCode::kUnsupported, cat(model.checkpoint.directory(), ": --dequantize: the model has a ",
                                             io::kTrainerFolder, "/, which cannot belong to quantised weights"));
  }
  Dequantiser dequantiser(model);
  auto form = dequantiser.form();
  const auto tensors = dequantiser.tensors(*form);
  for (const io::TensorInfo& info : tensors) {
    if (!needs_scale(info.dtype)) continue;
    throw Error(ErrorCode::kUnsupported,
                cat("--dequantize: '", info.name, "' is ", io::dtype_name(info.dtype),
                    ", but has no scale (the model is quantised with ", form->quantisation, ")"));
  }
  form->slots = model.slots;
  Json json = without_quantisation(model.config.json);
  if (const std::string& key = model.config.text_key; !key.empty()) json[key] = without_quantisation(*json.find(key));
  const auto layers = model.layers_with_experts;
  Model out = families::with_tensors(std::move(model), json, tensors);
  out.layers_with_experts = layers;
  out.stored = std::move(form);
  out.checkpoint.leave_out_quantisation();
  return out;
}

}  // namespace coppice::grow
