#pragma once

// A small model without a family, for tests of inference.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/grow/expand.h"
#include "coppice/infer/infer.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::infer {

using testing::f32_tensor;
using testing::HandMadeTensor;
using testing::TempDir;
using testing::tensors_of;

inline Inferred infer_from(const std::filesystem::path& model) { return infer(io::Checkpoint::open(model)); }

/// Two layers of three experts of 4 x 6 with a router, a dense layer and a shared expert beside; tests change it.
struct Toy {
  Json config = Json::object({{"model_type", "toy"},
                              {"num_hidden_layers", 2},
                              {"hidden_size", 6},
                              {"num_experts", 3},
                              {"num_experts_per_tok", 2},
                              {"moe_intermediate_size", 4}});
  std::vector<HandMadeTensor> tensors;

  explicit Toy(int64_t experts = 3) {
    config["num_experts"] = experts;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const std::string at = cat("model.layers.", layer, ".");
      add(at + "self_attn.q_proj.weight", {6, 6});
      add(at + "mlp.gate.weight", {experts, 6});
      add(at + "mlp.shared_experts.up.weight", {4, 6});
      for (int64_t expert = 0; expert < experts; ++expert) {
        add(cat(at, "mlp.experts.", expert, ".up.weight"), {4, 6});
        add(cat(at, "mlp.experts.", expert, ".down.weight"), {6, 4});
      }
    }
    add("model.embed_tokens.weight", {10, 6});
  }
  void add(const std::string& name, const std::vector<int64_t>& shape) {
    tensors.push_back(f32_tensor(name, shape, tensors.size() + 1));
  }
  void remove(std::string_view name) {
    std::erase_if(tensors, [name](const HandMadeTensor& t) { return t.info.name == name; });
  }
  void replace(const std::string& name, const std::vector<int64_t>& shape) {
    remove(name);
    add(name, shape);
  }
};

class Infer : public ::testing::Test {
 protected:
  std::filesystem::path write(const Toy& toy) {
    return testing::write_model(dir_ / cat("m", ++count_), toy.config, toy.tensors);
  }
  Inferred infer_toy(const Toy& toy) { return infer_from(write(toy)); }
  void refused(const Toy& toy, std::initializer_list<std::string_view> texts) {
    std::vector<std::string_view> wanted(texts);
    const auto path = write(toy);
    try {
      (void)infer_from(path);
      ADD_FAILURE() << "inferred, wanted a refusal with " << *texts.begin();
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kUnsupported);
      for (const std::string_view text : texts) EXPECT_THAT(error.what(), ::testing::HasSubstr(std::string(text)));
    }
  }
  /// Expands to twice as many experts by what is inferred, checks that each tensor is its parent's, and that these names
  /// are there. The configuration that was written.
  Json expands(const Toy& toy, std::initializer_list<std::string> names) {
    const auto path = write(toy), out = dir_ / cat("out", count_);
    const auto [inferred, file] = infer_family(io::Checkpoint::open(path));
    const auto model = families::open_model(path, &file.family());
    const plan::GrowthOptions growth{.router_init = methods::MethodChoice{"copy", {}}, .order = "append"};
    (void)grow::expand(model, plan::make_plan(model.config, growth, nullptr), {.out = out});
    const auto before = tensors_of(path), after = tensors_of(out);
    const int64_t experts = inferred.count.experts;
    size_t grown = 0;
    for (size_t i = 0; i < inferred.kinds.size(); ++i) grown += inferred.kinds[i] == Kind::kNumbered ? 1 : 0;
    EXPECT_EQ(after.size(), before.size() + grown);
    size_t at = 0;
    const auto checkpoint = io::Checkpoint::open(path);
    for (const auto& entry : checkpoint.entries()) {
      const std::string name(entry.info->name.view());
      const size_t old = before.at(name).size(), now = after.at(name).size();
      const bool has_all = inferred.kinds[at] == Kind::kStacked || inferred.kinds[at] == Kind::kRouter ||
                           inferred.kinds[at] == Kind::kRow;
      EXPECT_EQ(now, has_all ? 2 * old : old) << name;
      ++at;
    }
    for (const std::string& name : names) {
      EXPECT_TRUE(after.contains(name)) << name;
      std::string parent = name;
      if (const size_t five = name.find('5'); five != std::string::npos && after.contains(name)) {
        parent.replace(five, 1, std::to_string(5 - experts));
        EXPECT_EQ(after.at(name), before.at(parent)) << name;
      }
    }
    return Json::read(out / "config.json");
  }
  TempDir dir_;
  int count_ = 0;
};

}  // namespace coppice::infer
