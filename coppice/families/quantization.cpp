#include "coppice/families/quantization.h"

#include <algorithm>

#include "coppice/base/text.h"

namespace coppice::families {

namespace {

const Json* find_object(const Json& json) {
  for (const std::string_view key : {"quantization_config", "compression_config"}) {
    const Json* found = json.find(key);
    if (found != nullptr && found->is_object()) return found;
  }
  return nullptr;
}

std::string text_of(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value != nullptr && value->is_string() ? value->as_string() : std::string();
}

bool is_on(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value != nullptr && value->kind() == Json::Kind::kBool && value->as_bool();
}

/// The description of weights in the first group of compressed-tensors.
const Json* first_group_weights(const Json& quantization) {
  const Json* groups = quantization.find("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->members().empty()) return nullptr;
  const Json* weights = groups->members().front().second.find("weights");
  return weights != nullptr && weights->is_object() ? weights : nullptr;
}

int64_t whole_of(const Json* object, std::string_view key) {
  const Json* value = object == nullptr ? nullptr : object->find(key);
  constexpr int64_t kMostBits = 64;
  const bool fits = value != nullptr && value->kind() == Json::Kind::kInt && value->as_int() > 0;
  return fits && value->as_int() <= kMostBits ? value->as_int() : 0;
}

int64_t bits_of(const Json& q) {
  if (const int64_t bits = whole_of(&q, "bits")) return bits;
  if (const int64_t bits = whole_of(&q, "w_bit")) return bits;
  if (const int64_t bits = whole_of(first_group_weights(q), "num_bits")) return bits;
  constexpr int64_t kFour = 4, kEight = 8;
  if (is_on(q, "load_in_4bit")) return kFour;
  if (is_on(q, "load_in_8bit")) return kEight;
  const std::string names = text_of(q, "quant_method") + text_of(q, "quant_algo") + text_of(q, "format");
  for (const std::string_view four : {"mxfp4", "NVFP4", "nvfp4", "W4A"}) {
    if (names.find(four) != std::string::npos) return kFour;
  }
  for (const std::string_view eight : {"fp8", "FP8", "mxfp8", "int8", "W8A"}) {
    if (names.find(eight) != std::string::npos) return kEight;
  }
  return 0;
}

}  // namespace

const Json* find_quantization(const Json& config, const Json& section) {
  const Json* found = find_object(section);
  return found != nullptr ? found : find_object(config);
}

namespace detail {

std::string quantisation_text(const Json& config, const Json& section) {
  const Json* found = find_quantization(config, section);
  if (found == nullptr) return {};
  std::string method = text_of(*found, "quant_method");
  if (method.empty()) method = "a method that config.json does not name";
  const std::string algorithm = text_of(*found, "quant_algo");
  if (!algorithm.empty()) return cat(method, " ", algorithm);
  const Json* weights = first_group_weights(*found);
  std::string type = weights == nullptr ? std::string() : text_of(*weights, "type");
  if (const std::string kind = text_of(*found, "bnb_4bit_quant_type"); !kind.empty() && is_on(*found, "load_in_4bit"))
    return cat(method, " ", kind);
  const int64_t bits = bits_of(*found);
  const bool says_bits = std::ranges::any_of(method, [](char c) { return c >= '0' && c <= '9'; });
  std::string text = method;
  if (bits > 0 && !says_bits) text += cat(" ", type.empty() ? "int" : type, bits);
  const std::string format = text_of(*found, "format");
  return format.empty() ? text : cat(text, " (", format, ")");
}

int64_t quantised_bits(const Json& config, const Json& section) {
  const Json* found = find_quantization(config, section);
  return found == nullptr ? 0 : bits_of(*found);
}

bool holds_packed_values(std::string_view name) {
  constexpr std::string_view kEndings[] = {"_blocks", ".weight_packed", ".qweight", ".weight_quantized"};
  return std::ranges::any_of(kEndings, [name](std::string_view ending) { return name.ends_with(ending); });
}

bool stands_for_matrix(std::string_view name, io::Dtype dtype, const io::TensorShape& shape) {
  if (holds_packed_values(name)) return true;
  const bool is_factor = name.find("scale") != std::string_view::npos || name.find("zero") != std::string_view::npos;
  return !is_factor && !io::is_float(dtype) && shape.size() >= 2;
}

}  // namespace detail

}  // namespace coppice::families
