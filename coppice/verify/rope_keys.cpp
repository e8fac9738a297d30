#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "coppice/verify/rope_keys_detail.h"
#include "coppice/verify/same_value_detail.h"

namespace coppice::verify::detail {
namespace {

using families::Family;
using Ropes = std::map<std::string, Json>;

/// Members and the values that they mean when they are left out.
struct Usual {
  std::string_view member, value;
};
constexpr Usual kUsual[] = {{"rope_type", "\"default\""},
                            {"partial_rotary_factor", "1"},
                            {"beta_fast", "32"},
                            {"beta_slow", "1"},
                            {"truncate", "true"}};

const Json* member(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

/// rope_scaling replaces rope_parameters, as in transformers.
const Json* parameters_of(const Json& object) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = member(object, key);
    if (value != nullptr && value->is_object() && !value->members().empty()) return value;
  }
  return nullptr;
}

bool is_by_type(const Json& parameters) {
  bool any = false;
  for (const auto& [key, value] : parameters.members()) {
    if (key == "rope_type" || value.is_null()) continue;  // in zaya: a key beside the types
    if (!value.is_object()) return false;
    any = true;
  }
  return any;
}

/// transformers' defaults for what the object leaves out: members of a RoPE configuration, or whole ones by type.
Json left_out(const Family* family) {
  if (family == nullptr || (family->from_file && family->left_out.empty())) return Json::object();
  Json out = Json::object();
  out["rope_theta"] = family->rope_theta_fallback;
  if (family->has_partial_rotary) out["partial_rotary_factor"] = family->partial_rotary_fallback;
  if (!family->default_rope.empty()) out["rope_parameters"] = Json::parse(family->default_rope, "default_rope");
  const Json own =
      family->left_out.empty() ? Json::object() : Json::parse(family->left_out, "values of keys that are left out");
  for (const std::string_view key : kRopeKeys) {
    if (const Json* value = own.find(key)) out[key] = *value;
  }
  return out;
}

/// One RoPE configuration: its members, then keys beside them, then defaults.
Json rope_of(const Json* parameters, const Json& object, const Json& defaults) {
  Json rope = Json::object();
  if (parameters != nullptr) {
    for (const auto& [key, value] : parameters->members()) {
      if (!value.is_null()) rope[key == "type" ? "rope_type" : key] = value;
    }
  }
  for (const Json* place : {&object, &defaults}) {
    for (const char* key : {"rope_theta", "partial_rotary_factor"}) {
      const Json* value = member(*place, key);
      if (value != nullptr && rope.find(key) == nullptr) rope[key] = *value;
    }
  }
  const Json* type = rope.find("rope_type");
  const bool scales =
      type != nullptr && (*type == Json("yarn") || *type == Json("llama3") || *type == Json("longrope"));
  constexpr const char* kOriginal = "original_max_position_embeddings";
  if (scales) {
    const Json* own = member(object, kOriginal);
    const Json* all = member(object, "max_position_embeddings");
    if (own != nullptr) {
      rope[kOriginal] = *own;
    } else if (all != nullptr && rope.find(kOriginal) == nullptr) {
      rope[kOriginal] = *all;
    }
  }
  for (const auto& [key, value] : kUsual) {
    const Json* found = rope.find(key);
    if (found != nullptr && same_value(*found, Json::parse(value, key))) rope.erase(key);
  }
  return rope;
}

}  // namespace

std::map<std::string, Json> ropes_of(const Json& object, const Family* family) {
  const Json defaults = left_out(family);
  const Json* parameters = parameters_of(object);
  const bool says_nothing = std::ranges::none_of(kRopeKeys, [&](auto key) { return member(object, key) != nullptr; });
  if (parameters == nullptr && says_nothing) parameters = parameters_of(defaults);
  if (parameters == nullptr || !is_by_type(*parameters)) {
    Ropes ropes = {{"", rope_of(parameters, object, defaults)}};
    for (const char* key : {"rope_local_base_freq", "swa_rope_theta"}) {  // not scaled
      const Json* local = member(object, key);
      if (local == nullptr) continue;
      Json& sliding = ropes["sliding_attention"] = Json::object({{"rope_theta", *local}});
      if (const Json* part = ropes.at("").find("partial_rotary_factor")) sliding["partial_rotary_factor"] = *part;
    }
    return ropes;
  }
  Ropes ropes;
  for (const auto& [type, of_type] : parameters->members()) {
    if (of_type.is_object()) ropes[type] = rope_of(&of_type, object, Json::object());
  }
  return ropes;
}

bool same_ropes(const Ropes& a, const Ropes& b) {
  const auto of_type = [](const Ropes& ropes, const std::string& type) {
    const auto own = ropes.find(type);
    return own != ropes.end() ? own : ropes.find("");
  };
  std::set<std::string> types;
  for (const Ropes* ropes : {&a, &b}) {
    for (const auto& [type, rope] : *ropes) types.insert(type);
  }
  if (types.size() > 1 && !(a.contains("") && b.contains(""))) types.erase("");
  return std::ranges::all_of(types, [&](const std::string& type) {
    const auto was = of_type(a, type), is = of_type(b, type);
    return was != a.end() && is != b.end() && same_value(was->second, is->second);
  });
}

}  // namespace coppice::verify::detail
