// What verify says of copies where no record tells how they were made: every damage that bits or norms show is a
// problem, what is only like the parent's is counted, what is like nothing is not called damage.

#include "coppice/verify/recognise.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <span>

#include "coppice/base/text.h"
#include "coppice/models/expert_tensors.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/verify.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/edit_tensors.h"
#include "tests/testing/surgery_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::verify {
namespace {

namespace fs = std::filesystem;
using families::Family;
using families::Model;
using families::Role;
using families::TensorSlot;
using methods::MethodChoice;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using testing::TempDir;

constexpr const char* kOk = "ok: every tensor is accounted for";

const models::ModelSizes kSizes = {.vocab_size = 16,
                                   .model_dim = 16,
                                   .num_layers = 2,
                                   .num_heads = 2,
                                   .num_kv_heads = 1,
                                   .head_dim = 8,
                                   .expert_width = 8,
                                   .dense_width = 16};

fs::path model_of(const fs::path& directory, const Family& family) {
  if (family.surgery_only) return testing::surgery_model(directory, family);
  return testing::tiny_model(directory, family.model_type, {.sizes = kSizes, .std = 0.02});
}

/// Grows a model and takes the lineage away.
void grow_unrecorded(const fs::path& from, const fs::path& to, const plan::GrowthOptions& options) {
  testing::grow(from, to, options);
  fs::remove(to / io::kLineageFile);
}

VerifyResult verified(const fs::path& before, const fs::path& after) {
  return verify(families::open_model(before), families::open_model(after), 1);
}

using Edit = std::function<void(std::span<float> values, size_t cols)>;

/// Ways to damage a matrix, or a row of a router, or a bias (one column), each of which some program has made.
std::map<std::string, Edit> damages() {
  const auto row = [](std::span<float> values, size_t cols, size_t i) { return values.subspan(i * cols, cols); };
  return {{"doubled", [](auto values, size_t) { std::ranges::for_each(values, [](float& x) { x *= 2; }); }},
          {"last row times 1000",
           [row](auto values, size_t cols) {
             for (float& x : row(values, cols, values.size() / cols - 1)) x *= 1000;
           }},
          {"one value moved", [](auto values, size_t) { values.back() = 1.001f * values.back() + 1e-3f; }},
          {"first and last row exchanged",
           [row](auto values, size_t cols) {
             if (values.size() > cols)
               std::ranges::swap_ranges(row(values, cols, 0), row(values, cols, values.size() / cols - 1));
           }},
          {"rows reversed",
           [row](auto values, size_t cols) {
             const size_t rows = values.size() / cols;
             for (size_t i = 0; i < rows / 2; ++i)
               std::ranges::swap_ranges(row(values, cols, i), row(values, cols, rows - 1 - i));
           }},
          {"first and last column exchanged",
           [](auto values, size_t cols) {
             for (size_t i = 0; i < values.size(); i += cols) std::swap(values[i], values[i + cols - 1]);
           }},
          {"columns reversed", [row](auto values, size_t cols) {
             for (size_t i = 0; i < values.size() / cols; ++i) std::ranges::reverse(row(values, cols, i));
           }}};
}

/// A tensor of the last expert, or what is that expert's of a stacked tensor or of one with a row for each.
struct OfLastExpert {
  std::string name, what;
  size_t begin = 0, count = 0, cols = 1;
};

std::vector<OfLastExpert> tensors_of_last_expert(const Model& model) {
  std::map<std::string, OfLastExpert> out;
  const auto experts = static_cast<size_t>(model.config.num_experts);
  for (const TensorSlot& slot : model.slots) {
    const io::TensorInfo& info = *model.checkpoint.at(slot.name).info;
    const bool has_rows = families::has_rows(slot.role());
    if (info.bytes == 0 || !io::is_float(info.dtype) || (!has_rows && !families::is_expert(slot.role()))) continue;
    if (slot.expert >= 0 && slot.expert != model.config.num_experts - 1) continue;
    const auto all = static_cast<size_t>(info.elements());
    const auto slices = has_rows          ? static_cast<size_t>(model.config.rows_of(slot.role()))
                        : slot.expert < 0 ? experts
                                          : 1;
    OfLastExpert& of = out[std::string(families::role_name(slot.role()))];
    of = {slot.name.str(), std::string(families::role_name(slot.role())), 0, all / slices, 1};
    of.begin = slices == 1 ? 0 : (experts - 1) * of.count;
    const bool is_row = has_rows || families::is_bias(slot.role());
    of.cols = is_row ? of.count : static_cast<size_t>(info.shape.back());
  }
  std::vector<OfLastExpert> list;
  for (auto& [role, of] : out) list.push_back(std::move(of));
  return list;
}

std::vector<const Family*> moe_families() {
  std::vector<const Family*> out;
  for (const Family* family : families::all_families()) {
    if (family->has_moe()) out.push_back(family);
  }
  return out;
}

class CopiesOfEveryFamily : public ::testing::TestWithParam<const Family*> {};
INSTANTIATE_TEST_SUITE_P(Verify, CopiesOfEveryFamily, ::testing::ValuesIn(moe_families()), [](const auto& test) {
  std::string name(test.param->model_type);
  std::ranges::replace_if(name, [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
});

TEST_P(CopiesOfEveryFamily, AreRefusedWithAnyDamageWithoutALineage) {
  const TempDir dir;
  const fs::path model = model_of(dir / "m", *GetParam()), out = dir / "out";
  grow_unrecorded(model, out, {.router_init = MethodChoice{"copy", {}}});
  const Model before = families::open_model(model);
  ASSERT_EQ(verified(model, out).verdict(), kOk);
  for (const OfLastExpert& of : tensors_of_last_expert(families::open_model(out))) {
    for (const auto& [damage, edit] : damages()) {
      std::vector<float> whole;
      bool is_changed = false;
      testing::edit_values(out, of.name, [&](std::vector<float>& values) {
        whole = values;
        edit(std::span(values).subspan(of.begin, of.count), of.cols);
        is_changed = values != whole;
      });
      if (!is_changed) continue;
      const VerifyResult result = verify(before, families::open_model(out), 1);
      EXPECT_THAT(result.verdict(), StartsWith("failed")) << of.what << ", " << damage;
      testing::set_values(out, of.name, whole);
    }
  }
}

class ChangedCopies : public ::testing::Test {
 protected:
  fs::path grown(const char* family, const char* expert_init, const char* experts = "2x") {
    const fs::path model = dir_ / family, out = dir_ / cat(family, "-", expert_init, "-", experts);
    if (!fs::exists(model)) testing::tiny_model(model, family, {.sizes = kSizes, .std = 0.02});
    grow_unrecorded(model, out,
                    {.experts = plan::ExpertCount::from_text(experts),
                     .expert_init = MethodChoice::from_text(expert_init),
                     .router_init = MethodChoice{"copy", {}}});
    return out;
  }
  VerifyResult result(const fs::path& out) const {
    const std::string name = out.filename().string();
    return verified(dir_ / name.substr(0, name.find('-')), out);
  }
  std::string tensor(const fs::path& out, Role role, int64_t expert) const {
    return testing::name_of(families::open_model(out), role, 0, expert);
  }
  void damage(const fs::path& out, Role role, int64_t expert, const std::string& how) {
    const std::string name = tensor(out, role, expert);
    const auto cols = static_cast<size_t>(io::Checkpoint::open(out).at(name).info->shape.back());
    testing::edit_values(out, name,
                         [&](std::vector<float>& values) { damages().at(how)(std::span<float>(values), cols); });
  }
  TempDir dir_;
};

TEST_F(ChangedCopies, OfMovedUnitsAreComparedWholeAndMustMoveThemTogether) {
  for (const char* family : {"mixtral", "gpt_oss"}) EXPECT_EQ(result(grown(family, "permute_units")).verdict(), kOk);
  const fs::path out = grown("mixtral", "permute_units", "5");
  damage(out, Role::kExpertUp, 4, "rows reversed");
  EXPECT_THAT(result(out).problems,
              ::testing::Contains(HasSubstr("gate, up and down must have their units in the same order")));
}

TEST_F(ChangedCopies, AreCountedWhereOnlyTheirValuesAreNear) {
  for (const char* method : {"copy_noise", "drop_upcycle", "drop_units", "scaled_copy", "svd_perturb"})
    EXPECT_EQ(result(grown("mixtral", method)).verdict(), cat(kOk, "; not compared: values of 24 matrices of copies"));
  EXPECT_EQ(result(grown("mixtral", "shuffle_columns")).verdict(),
            cat(kOk, "; not compared: the order of columns in 24 matrices of copies"));
}

// The same seed makes no copy longer than the others, or changes other units of it.
TEST_F(ChangedCopies, AreRefusedWhereOneIsNotAsTheOthersAre) {
  const std::map<std::string, std::vector<const char*>> hows = {
      {"copy_noise", {"doubled", "rows reversed", "last row times 1000"}},
      {"scaled_copy", {"doubled", "rows reversed"}},
      {"drop_upcycle", {"doubled", "rows reversed", "columns reversed", "first and last row exchanged"}},
      {"drop_units", {"doubled", "rows reversed", "columns reversed", "last row times 1000"}},
      {"shuffle_columns", {"doubled", "rows reversed", "one value moved"}},
      {"permute_units", {"doubled", "rows reversed", "columns reversed", "one value moved"}}};
  for (const auto& [method, ways] : hows) {
    for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
      for (const char* how : ways) {
        // Of down columns are units.
        if (method == "drop_units" && role == Role::kExpertDown && std::string(how) == "last row times 1000") continue;
        const fs::path out = grown("mixtral", method.c_str());
        damage(out, role, 6, how);
        EXPECT_THAT(result(out).verdict(), StartsWith("failed"))
            << method << " " << families::role_name(role) << " " << how;
        fs::remove_all(out);
      }
    }
  }
}

TEST_F(ChangedCopies, HaveTheirBiasesJudgedByTheUnitsTheyBelongTo) {
  for (const char* method : {"drop_units", "drop_units:ratio=0.25", "permute_units", "drop_upcycle"}) {
    const fs::path out = grown("gpt_oss", method);
    EXPECT_THAT(result(out).problems, IsEmpty()) << method;
    const Model model = families::open_model(out);
    const auto bias = std::ranges::find(model.slots, Role::kExpertGateUpBias, &TensorSlot::role);
    ASSERT_NE(bias, model.slots.end());
    testing::edit_values(out, bias->name, [](std::vector<float>& values) {  // of every unit of the last expert
      for (float& x : std::span(values).last(values.size() / 8)) x += 1e-3f;
    });
    EXPECT_THAT(result(out).problems, ::testing::Contains(HasSubstr("but the weights of these units are equal")))
        << method;
  }
}

TEST_F(ChangedCopies, OfSeveralGrowthsMayEachBeOtherwise) {
  testing::tiny_model(dir_ / "m", "mixtral", {.sizes = kSizes, .std = 0.02});
  testing::grow(dir_ / "m", dir_ / "a", {.expert_init = {"copy", {}}});
  testing::grow(dir_ / "a", dir_ / "b", {.experts = {"10"}, .expert_init = {"copy_noise", {}}});
  EXPECT_THAT(verified(dir_ / "m", dir_ / "b").problems, IsEmpty());
  fs::remove(dir_ / "b" / io::kLineageFile);
  EXPECT_THAT(verified(dir_ / "m", dir_ / "b").problems, ::testing::Contains(HasSubstr("unlike most copies")));
}

TEST_F(ChangedCopies, ThatAreLikeNothingAreNotCalledDamaged) {
  for (const char* method : {"copy_noise:lambda=10", "drop_upcycle:ratio=1", "scaled_copy:factor=-1"}) {
    const VerifyResult found = result(grown("mixtral", method));
    EXPECT_FALSE(found.ok);
    EXPECT_THAT(found.problems, IsEmpty());
    EXPECT_EQ(found.not_recognised.size(), 8u);
    EXPECT_EQ(
        found.verdict(),
        "not verified: 8 experts cannot be recognised by content (their values are not similar to any original; with "
        "the coppice.json of the expansion, verify can recompute them)");
  }
}

class RowsOfCopies : public ::testing::TestWithParam<const char*> {
 protected:
  RowsOfCopies() {
    testing::tiny_model(dir_ / "m", "glm4_moe", {.sizes = kSizes, .std = 0.02});
    grow_unrecorded(dir_ / "m", dir_ / "out", {.router_init = MethodChoice::from_text(GetParam()), .seed = 4});
  }
  VerifyResult result() const { return verified(dir_ / "m", dir_ / "out"); }
  /// Multiplies the last expert's values and adds to them.
  void change(Role role, float factor, float more = 0) {
    const Model model = families::open_model(dir_ / "out");
    const auto slot = std::ranges::find(model.slots, role, &TensorSlot::role);
    testing::edit_values(dir_ / "out", slot->name, [&](std::vector<float>& values) {
      for (float& x : std::span(values).last(values.size() / static_cast<size_t>(model.config.num_experts)))
        x = factor * x + more;
    });
  }
  TempDir dir_;
};

class NearRows : public RowsOfCopies {};
INSTANTIATE_TEST_SUITE_P(Verify, NearRows,
                         ::testing::Values("copy_noise", "interpolate", "scaled_copy", "perturb_new_only", "orthogonal",
                                           "adversarial", "temperature_scaled", "svd_perturb", "bias_only", "dormant"));

TEST_P(NearRows, AreCountedAndRefusedFarFromWhatTheOthersAre) {
  EXPECT_THAT(result().verdict(), StartsWith(cat(kOk, "; not compared: values of ")));
  change(Role::kRouter, 1000);
  EXPECT_THAT(result().verdict(), StartsWith("failed"));
  change(Role::kRouter, 0.001f);
  change(Role::kSelectionBias, 1, 1e6f);
  EXPECT_THAT(result().verdict(), StartsWith("failed"));
}

// balance-bias zero, of a model whose biases mostly are 0 already.
TEST(ZeroedBiases, AreCountedAndRefusedWhereOneIsNotZero) {
  const TempDir dir;
  testing::tiny_model(dir / "m", "glm4_moe", {.sizes = kSizes, .std = 0.02});
  const Model model = families::open_model(dir / "m");
  const std::string bias = std::ranges::find(model.slots, Role::kSelectionBias, &TensorSlot::role)->name.str();
  testing::edit_values(dir / "m", bias, [](std::vector<float>& values) {
    std::ranges::fill(values, 0.0f);
    values[1] = 0.25f;
  });
  grow_unrecorded(dir / "m", dir / "out", {.router_init = MethodChoice{"copy", {}}, .balance_bias = "zero"});
  EXPECT_THAT(verified(dir / "m", dir / "out").verdict(), cat(kOk, "; not compared: values of 1 bias"));
  testing::edit_values(dir / "out", bias, [](std::vector<float>& values) { values.back() = 0.125f; });
  EXPECT_THAT(verified(dir / "m", dir / "out").problems, ElementsAre(HasSubstr("it is 0 in most copies of the layer")));
}

class FarRows : public RowsOfCopies {};
INSTANTIATE_TEST_SUITE_P(Verify, FarRows,
                         ::testing::Values("scaled_copy:factor=-10", "scaled_copy:factor=0", "interpolate:alpha=1"));

TEST_P(FarRows, AreNotCalledDamaged) {
  const VerifyResult found = result();
  EXPECT_THAT(found.problems, IsEmpty());
  EXPECT_THAT(found.verdict(), HasSubstr("router rows cannot be recognised by content"));
}

class RouterGroups : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Verify, RouterGroups, ::testing::Values("glm4_moe", "deepseek_v3"));

TEST_P(RouterGroups, HaveTheChildrenOfOneGroupOfBefore) {
  const TempDir dir;
  Json config = Json::object({{"n_group", Json(2)}, {"topk_group", Json(1)}});
  testing::tiny_model(dir / "m", GetParam(), {.sizes = kSizes, .config = config, .std = 0.02});
  plan::GrowthOptions options{.router_init = MethodChoice{"copy", {}}};
  grow_unrecorded(dir / "m", dir / "out", options);
  EXPECT_EQ(verified(dir / "m", dir / "out").verdict(), kOk);
  options.allow_regroup = true;
  grow_unrecorded(dir / "m", dir / "regrouped", options);
  EXPECT_THAT(verified(dir / "m", dir / "regrouped").problems,
              ::testing::Each(HasSubstr("router group 0 has experts of the groups 0 and 1 of the model before")));
  EXPECT_FALSE(verified(dir / "m", dir / "regrouped").ok);
}

}  // namespace
}  // namespace coppice::verify
