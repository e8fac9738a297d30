// What is said of an expansion beforehand is what the decoder computes afterwards: random models of every trained
// family with every switch of its table, random biases, methods, parameters and plans edited by hand.

#include "coppice/grow/exactness.h"

#include <ATen/core/TensorBody.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <ATen/ops/sub.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/nn/decoder.h"
#include "coppice/plan/text.h"
#include "tests/testing/edit_tensors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using families::Role;
using methods::MethodChoice;
using plan::GrowthPlan;

constexpr int64_t kVocab = 48;
constexpr double kSame = 1e-5;  // of the largest logit

class Dice {
 public:
  explicit Dice(uint32_t seed) : bits_(seed) {}
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(bits_); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double between(double lo, double hi) { return std::uniform_real_distribution<double>(lo, hi)(bits_); }
  float normal() { return std::normal_distribution<float>()(bits_); }
  template <class T>
  T of(std::initializer_list<T> items) {
    return items.begin()[below(static_cast<int64_t>(items.size()))];
  }
  template <class Items>
  void shuffle(Items& items) {
    std::ranges::shuffle(items, bits_);
  }

 private:
  std::mt19937 bits_;
};

/// Every switch of the family's table takes either value.
Json random_switches(const families::Family& family, Dice& dice) {
  Json config = Json::object();
  for (const families::Switch* s : {&family.qkv_bias, &family.output_bias, &family.mlp_bias, &family.renormalise,
                                    &family.qk_norm_on, &family.rope_interleaved}) {
    if (s->kind == families::Switch::Kind::kKey) config[s->key] = dice.one_in(2);
  }
  if (family.has_groups && dice.one_in(2)) {
    config[family.num_groups_key] = 2;
    config[family.top_groups_key] = dice.of({1, 1, 2});
    if (!family.groups_on_key.empty()) config[family.groups_on_key] = family.groups_on_value;
  }
  if (family.has_routed_scaling) config[family.routed_scaling_key] = dice.of({1.0, 2.5});
  for (const std::string_view key :
       {family.multipliers.embedding, family.multipliers.residual, family.multipliers.logits}) {
    if (!key.empty()) config[key] = dice.of({1.0, 1.5});
  }
  return config;
}

fs::path random_model(const fs::path& directory, const families::Family& family, Dice& dice) {
  testing::TinyModel tiny;
  tiny.sizes = {.vocab_size = kVocab,
                .model_dim = 16,
                .num_layers = 2,
                .num_heads = 2,
                .num_kv_heads = 1,
                .head_dim = 8,
                .num_experts = dice.of<int64_t>({4, 6, 8}),
                .top_k = dice.of<int64_t>({1, 1, 2, family.has_groups ? 2 : 3}),
                .expert_width = 12,
                .dense_width = 24,
                .max_positions = 64};
  tiny.config = random_switches(family, dice);
  tiny.dtype = dice.of({io::Dtype::kF32, io::Dtype::kBf16, io::Dtype::kF16});
  tiny.std = dice.of({0.05, 0.2});
  tiny.seed = static_cast<uint64_t>(dice.below(1000));
  const fs::path path = testing::tiny_model(directory, family.model_type, tiny);
  const float spread = dice.of({0.0f, 0.001f, 0.3f, 3.0f, 100.0f});
  for (const families::TensorSlot& slot : families::open_model(path).slots) {
    const bool chooses = slot.role() == Role::kSelectionBias || slot.role() == Role::kRouterBias;
    if (!chooses && !families::is_bias(slot.role())) continue;
    testing::edit_values(path, slot.name, [&](std::vector<float>& values) {
      for (float& x : values) x = (chooses ? spread : 0.1f) * dice.normal();
    });
  }
  return path;
}

MethodChoice random_method(std::string_view name, std::span<const methods::ParamSpec> params, Dice& dice) {
  MethodChoice choice{std::string(name), {}};
  for (const methods::ParamSpec& param : params) {
    if (!dice.one_in(2)) continue;
    const double lo = std::max(param.lo, -3.0), hi = std::min(param.hi, std::max(lo, 3.0));
    double value = dice.one_in(4) ? std::max(param.lo, std::min(param.hi, 0.0)) : dice.between(lo, hi);
    if (param.is_switch) value = static_cast<double>(dice.below(2));
    if (param.is_whole) value = std::floor(value);
    choice.given[param.key.data()] = value;
  }
  return choice;
}

MethodChoice random_expert_init(Dice& dice) {
  if (dice.one_in(2)) return {"copy", {}};
  const auto& row = methods::expert_inits()[static_cast<size_t>(dice.below(std::ssize(methods::expert_inits())))];
  return random_method(row.name, row.params, dice);
}

MethodChoice random_router_init(Dice& dice) {
  if (dice.one_in(3)) return {"copy", {}};
  if (dice.one_in(3)) return MethodChoice{"dormant", {}};
  if (dice.one_in(3))
    return MethodChoice{
        "bias_only",
        {{"shift", dice.of({-0.02, -0.5, -2.0, -100.0, -1e4, 5.0})}, {"delta", dice.of({0.0, 1e-3, 1.0, 1000.0})}}};
  const auto& row = methods::router_inits()[static_cast<size_t>(dice.below(std::ssize(methods::router_inits())))];
  return random_method(row.name, row.params, dice);
}

/// As somebody might edit the file: children in another order, other parents, methods of single layers.
GrowthPlan edited(const GrowthPlan& plan, const families::ModelConfig& config, Dice& dice) {
  Json json = plan.to_json();
  for (const auto& layer : plan.layers) {
    const std::string key = std::to_string(layer.layer);
    if (dice.one_in(2)) {
      std::vector<Json> parents = json.at("parents").at(key).items();
      if (dice.one_in(3)) parents.back() = parents.front();
      if (dice.one_in(2)) dice.shuffle(parents);
      json["parents"][key] = Json::array(std::move(parents));
    }
    if (dice.one_in(3)) json["layer_methods"][key]["router_init"] = random_router_init(dice).to_text();
    if (dice.one_in(4)) json["layer_methods"][key]["expert_init"] = random_expert_init(dice).to_text();
  }
  GrowthPlan out = GrowthPlan::from_json(json, "edited");
  plan::set_factors(config, out);
  plan::check_plan(config, out, dice.one_in(2));
  return out;
}

GrowthPlan random_plan(const families::ModelConfig& config, Dice& dice) {
  plan::GrowthOptions options;
  options.experts = plan::ExpertCount::from_text(dice.of({"2x", "2x", "3x", "1.5x"}));
  options.expert_init = random_expert_init(dice);
  options.router_init = random_router_init(dice);
  options.seed = static_cast<uint64_t>(dice.below(1000));
  if (config.routing.has_selection_bias && dice.one_in(6)) options.balance_bias = "zero";
  if (dice.one_in(3)) options.order = dice.of({"append", "siblings"});
  if (config.routing.num_groups > 1 && dice.one_in(4)) options.allow_regroup = true;
  options.scale_top_k = dice.one_in(3);
  if (dice.one_in(6)) {
    options = {};
    options.router_init.reset();
    options.split = dice.of({2, 3, 4});
  }
  const GrowthPlan plan = plan::make_plan(config, options, nullptr);
  return dice.one_in(3) ? edited(plan, config, dice) : plan;
}

at::Tensor random_tokens(Dice& dice) {
  const auto tokens = at::empty({4, 24}, at::kLong);
  auto* const ids = tokens.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) ids[i] = dice.below(kVocab);
  return tokens;
}

/// The expanded model, from the bytes that `expand` would write.
nn::Decoder grown_decoder(const families::Model& model, const GrowthPlan& plan) {
  const auto slots = grow::grown_slots(model, plan);
  const auto tensors = grow::grown_weights(model, plan, slots, nullptr);
  return {families::read_config(plan::grown_config(model.config, plan), "grown"), nn::ComputeDtype::kF32,
          [&](const families::TensorSlot& slot, std::span<float> values) {
            const auto is_it = [&](const output::OutputTensor& one) { return one.info.name == slot.name; };
            const output::OutputTensor& tensor = *std::ranges::find_if(tensors, is_it);
            std::vector<std::byte> bytes(tensor.info.bytes);
            uint64_t at = 0;
            for (const auto& piece : tensor.pieces) {
              piece.fill(0, std::span(bytes).subspan(at, piece.bytes));
              at += piece.bytes;
            }
            io::to_f32(tensor.info.dtype, bytes, values);
          }};
}

double largest(const at::Tensor& tensor) { return tensor.abs().max().item<double>(); }

/// What was said how often, over all growths of a family.
struct Tally {
  int exact = 0, not_exact = 0, unknown = 0;
  int certain = 0, hidden = 0;  ///< not exact by a reason that every token meets, and of those, with the same logits
};

/// Reasons that every token meets, where every expert has a copy: others speak of what can happen.
bool is_certain(const std::string& reason, const GrowthPlan& plan, const families::Routing& routing) {
  if (routing.has_router_bias) return false;  // one far above the others leaves no weight to the second expert
  const bool all_have_copies = std::ranges::all_of(plan.layers, [&](const methods::LayerPlan& layer) {
    return std::ranges::all_of(layer.siblings(plan.experts_before), [](uint32_t n) { return n > 1; });
  });
  const auto says = [&](const char* words) { return reason.find(words) != std::string::npos; };
  return all_have_copies && (says("has its parent's score") || says("divides a token's gate"));
}

void check_growth(const families::Model& model, const at::Tensor& tokens, const at::Tensor& before,
                  const GrowthPlan& plan, Tally& tally) {
  const auto verdict = grow::growth_exactness(model, plan);
  SCOPED_TRACE(cat(plan::methods_text(plan), " top-k factor ", plan.top_k_factor, "\n", model.config.json.dump(), "\n",
                   plan.to_json().at("parents").dump(), "\n", verdict.reason));
  EXPECT_TRUE(verdict.reason.starts_with(!verdict.known ? "Unknown: " : verdict.exact ? "Exact" : "Not exact: "));
  const double change = largest(grown_decoder(model, plan).logits(tokens, {}).sub(before)) / largest(before);
  if (!verdict.known) {
    EXPECT_FALSE(verdict.exact);
    ++tally.unknown;
  } else if (verdict.exact) {
    EXPECT_LT(change, kSame);
    ++tally.exact;
  } else {
    ++tally.not_exact;
    if (!is_certain(verdict.reason, plan, model.config.routing)) return;
    ++tally.certain;
    if (change < kSame) ++tally.hidden;
  }
}

class ExactnessOf : public ::testing::TestWithParam<const families::Family*> {};

TEST_P(ExactnessOf, IsWhatTheDecoderComputes) {
  constexpr int kModels = 7, kPlans = 16;
  const at::NoGradGuard no_grad;
  const testing::TempDir dir;
  const char* const seed = std::getenv("COPPICE_TEST_SEED");  // to look further than every run does
  Dice dice(seed == nullptr ? 20 : static_cast<uint32_t>(std::stoul(seed)));
  Tally tally;
  for (int m = 0; m < kModels; ++m) {
    const auto model = families::open_model(random_model(dir / std::to_string(m), *GetParam(), dice));
    const auto tokens = random_tokens(dice);
    const auto before = nn::Decoder::load(model, nn::ComputeDtype::kF32).logits(tokens, {});
    for (int p = 0; p < kPlans; ++p) {
      std::optional<GrowthPlan> plan;
      try {
        plan = random_plan(model.config, dice);
        (void)plan::grown_config(model.config, *plan);
      } catch (const Error& error) {  // settings that do not go together
        EXPECT_TRUE(error.code == ErrorCode::kUsage || error.code == ErrorCode::kUnsupported ||
                    error.code == ErrorCode::kFormat)
            << error.what();
        continue;
      }
      check_growth(model, tokens, before, *plan, tally);
    }
  }
  EXPECT_GE(tally.exact, 4);
  EXPECT_GE(tally.not_exact, 8);
  EXPECT_LE(tally.hidden, tally.certain / 20);
  EXPECT_LE(tally.unknown, (tally.exact + tally.not_exact) / 4);
}

std::vector<const families::Family*> trained_with_experts() {
  auto out = testing::trained_families();
  std::erase_if(out, [](const families::Family* family) { return !family->has_moe(); });
  return out;
}

INSTANTIATE_TEST_SUITE_P(Families, ExactnessOf, ::testing::ValuesIn(trained_with_experts()),
                         [](const auto& family) { return std::string(family.param->model_type); });

}  // namespace
}  // namespace coppice::train
