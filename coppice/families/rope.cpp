#include "coppice/families/rope.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "coppice/families/config_reader_detail.h"

namespace coppice::families {

namespace {

using detail::ConfigReader;

constexpr double kLargestNumber = 1e12;
constexpr double kLeastNumber = 1e-12;
constexpr int64_t kMostPositions = int64_t{1} << 31;

constexpr std::pair<std::string_view, RopeScaling> kTypes[] = {
    {"default", RopeScaling::kNone}, {"linear", RopeScaling::kLinear}, {"dynamic", RopeScaling::kDynamic},
    {"yarn", RopeScaling::kYarn},    {"llama3", RopeScaling::kLlama3}, {"longrope", RopeScaling::kLong}};

// Version 5 nests the keys that version 4 has at the top; nested values take precedence, and rope_scaling replaces
// rope_parameters, as in transformers.
std::pair<std::string_view, const Json*> nested_parameters(const ConfigReader& in) {
  std::pair<std::string_view, const Json*> nested = {"rope_parameters", nullptr};
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = in.find(key);
    if (value != nullptr && !value->is_object()) in.refuse(key, "an object");
    if (nested.second == nullptr && value != nullptr && !value->members().empty()) nested = {key, value};
  }
  return nested;
}

/// The factor of yarn on attention scores for a context that is `factor` times longer.
double yarn_scale(double factor, double by) { return factor <= 1 ? 1.0 : 0.1 * by * std::log(factor) + 1.0; }

// The number of rotary dimensions of a head, if the configuration defines it, as a share or as a number, under several
// names. All that are present must agree.
std::optional<int64_t> read_rotary_dim(std::initializer_list<const ConfigReader*> places, int64_t head_dim) {
  std::optional<int64_t> found;
  std::string said;
  const auto take = [&](const ConfigReader& in, std::string_view key, int64_t dim) {
    if (found && *found != dim) {
      in.refuse(key, cat("a value for ", *found, " of the ", head_dim, " dimensions of a head, because ", said,
                         " gives ", *found, " rotary dimensions (correct the wrong one)"));
    }
    found = dim;
    said = cat("'", key, "' = ", in.at(key).dump());
  };
  for (const ConfigReader* in : places) {
    for (const std::string_view key : {"partial_rotary_factor", "rotary_pct", "rope_pct"}) {
      if (in->find(key) == nullptr) continue;
      take(*in, key, static_cast<int64_t>(static_cast<double>(head_dim) * in->number_or(key, 1, 0, 1)));
    }
    for (const std::string_view key : {"rotary_dim", "rotary_ndims"}) {
      if (in->find(key) != nullptr) take(*in, key, in->whole(key, 0, head_dim));
    }
  }
  return found;
}

std::vector<double> read_factors(const ConfigReader& in, std::string_view key, int64_t count) {
  const auto refuse = [&] { in.refuse(key, cat("a list of ", count, " positive numbers, one for each frequency")); };
  const Json& list = in.at(key);
  if (!list.is_array() || static_cast<int64_t>(list.items().size()) != count) refuse();
  std::vector<double> out;
  for (const Json& item : list.items()) {
    if (!item.is_number() || !(item.as_double() >= kLeastNumber) || item.as_double() > kLargestNumber) refuse();
    out.push_back(item.as_double());
  }
  return out;
}

void read_yarn(const ConfigReader& in, Rope& rope) {
  if (rope.theta <= 1) in.refuse("rope_theta", "more than 1, because yarn's ramp uses its powers");
  const double mscale = in.number_or("mscale", 0, 0, kLargestNumber);
  const double all_dim = in.number_or("mscale_all_dim", 0, 0, kLargestNumber);
  const double both = mscale != 0 && all_dim != 0 ? yarn_scale(rope.factor, mscale) / yarn_scale(rope.factor, all_dim)
                                                  : yarn_scale(rope.factor, 1);
  rope.attention_factor = in.number_or("attention_factor", both, 0, kLargestNumber);
  rope.beta_fast = in.number_or("beta_fast", 32, kLeastNumber, kLargestNumber);
  rope.beta_slow = in.number_or("beta_slow", 1, kLeastNumber, kLargestNumber);
  rope.truncate = in.flag_or("truncate", true);
}

void read_llama3(const ConfigReader& in, Rope& rope) {
  rope.low_freq_factor = in.number_or("low_freq_factor", 1, kLeastNumber, kLargestNumber);
  rope.high_freq_factor = in.number_or("high_freq_factor", 4, kLeastNumber, kLargestNumber);
  if (rope.high_freq_factor <= rope.low_freq_factor) in.refuse("high_freq_factor", "more than low_freq_factor");
}

void read_long(const ConfigReader& in, Rope& rope) {
  rope.short_factors = read_factors(in, "short_factor", rope.dim / 2);
  rope.long_factors = read_factors(in, "long_factor", rope.dim / 2);
  if (rope.factor > 1 && rope.original_positions < 2) in.refuse("original_max_position_embeddings", "2 or more");
  const double wanted =
      rope.factor <= 1 ? 1.0 : std::sqrt(1 + std::log(rope.factor) / std::log(rope.original_positions));
  rope.attention_factor = in.number_or("attention_factor", wanted, 0, kLargestNumber);
}

// The factor, or the ratio of the new and the original context length.
double read_factor(const ConfigReader& in, const Rope& rope) {
  const double longer = static_cast<double>(rope.max_positions) / static_cast<double>(rope.original_positions);
  const bool may_be_derived = rope.scaling == RopeScaling::kYarn || rope.scaling == RopeScaling::kLong;
  if (!may_be_derived) (void)in.at("factor");
  return in.number_or("factor", longer, kLeastNumber, kLargestNumber);
}

}  // namespace

RopeRead read_rope(const Json& config, std::string_view source, const Family& family, int64_t head_dim,
                   int64_t max_positions) {
  const ConfigReader top(config, source);
  const auto [key, nested] = nested_parameters(top);
  const std::string nested_source = cat(source, ": ", key);
  const Json fallback = family.default_rope.empty() ? Json::object() : Json::parse(family.default_rope, "default");
  const ConfigReader in(nested == nullptr ? fallback : *nested, nested_source);
  const auto number = [&](std::string_view name, double otherwise, double low, double high) {
    return in.number_or(name, top.number_or(name, otherwise, low, high), low, high);
  };
  RopeRead out;
  Rope& rope = out.rope;
  rope.theta = number("rope_theta", family.rope_theta_fallback, kLeastNumber, kLargestNumber);
  rope.dim = head_dim;
  const std::optional<int64_t> given = read_rotary_dim({&in, &top}, head_dim);
  if (family.has_partial_rotary) {
    const auto usual = static_cast<int64_t>(static_cast<double>(head_dim) * family.partial_rotary_fallback);
    rope.dim = given.value_or(usual);
  } else if (given.value_or(head_dim) != head_dim) {
    out.unsupported.push_back(cat("RoPE over ", *given, " of the ", head_dim,
                                  " dimensions of a head (in this family transformers applies RoPE to all of them)"));
  }
  rope.interleaved = family.rope_interleaved.kind == Switch::Kind::kKey
                         ? top.flag_or(family.rope_interleaved.key, family.rope_interleaved.fallback)
                         : family.rope_interleaved.kind == Switch::Kind::kYes;
  rope.max_positions = max_positions;
  if (rope.dim < 2) out.unsupported.emplace_back("RoPE over 0 dimensions");
  if (rope.dim % 2 != 0) out.unsupported.push_back(cat("RoPE over ", rope.dim, " dimensions, an odd number"));
  if (in.find("full_attention") != nullptr || in.find("sliding_attention") != nullptr)
    out.unsupported.emplace_back("RoPE parameters for each type of layer");

  std::string type = in.text_or("rope_type", in.text_or("type", "default"));
  if (family.renamed_rope && (type == "su" || type == "yarn")) type = "longrope";
  const auto* known = std::ranges::find(kTypes, type, &std::pair<std::string_view, RopeScaling>::first);
  if (known == std::end(kTypes)) {
    out.unsupported.push_back(cat("RoPE scaling of type '", type, "'"));
    return out;
  }
  rope.scaling = known->second;
  if (rope.scaling == RopeScaling::kNone || !out.unsupported.empty()) return out;

  // A value at the top (phi3) takes precedence over the nested one.
  constexpr std::string_view kOriginal = "original_max_position_embeddings";
  const int64_t fallback_positions =
      family.original_positions_fallback > 0 ? family.original_positions_fallback : max_positions;
  rope.original_positions =
      top.whole_or(kOriginal, in.whole_or(kOriginal, fallback_positions, 1, kMostPositions), 1, kMostPositions);
  rope.factor = read_factor(in, rope);
  if (rope.scaling == RopeScaling::kDynamic && rope.dim == 2)
    out.unsupported.emplace_back("dynamic RoPE over 2 dimensions, for which transformers divides by 0");
  switch (rope.scaling) {
    case RopeScaling::kYarn: read_yarn(in, rope); break;
    case RopeScaling::kLlama3: read_llama3(in, rope); break;
    case RopeScaling::kLong: read_long(in, rope); break;
    default: break;
  }
  if (family.has_latent_attention) {
    const double all_dim = in.number_or("mscale_all_dim", 0, 0, kLargestNumber);
    if (all_dim != 0) rope.softmax_factor = std::pow(yarn_scale(rope.factor, all_dim), 2);
  }
  return out;
}

}  // namespace coppice::families
