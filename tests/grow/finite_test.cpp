// A value that is not finite ends what computes on it, with an error that names it; what only copies keeps its bytes.

#include "coppice/matrix/finite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "coppice/base/text.h"
#include "coppice/convert/convert.h"
#include "coppice/grow/grow.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/convert_examples.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using matrix::MatrixBytes;

namespace fs = std::filesystem;
using families::Role;
using io::Dtype;
using methods::Moment;
using testing::Bytes;
using testing::example_plan;
using testing::expect_error;
using testing::TempDir;
using testing::tiny_model;

constexpr int64_t kLayer = 5;  // of example_plan
constexpr int64_t kExperts = 4;
constexpr float kBad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()};
constexpr Dtype kFloats[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};

Bytes store(Dtype dtype, const std::vector<float>& values) {
  Bytes bytes(values.size() * io::dtype_bytes(dtype));
  io::from_f32(dtype, values, bytes);
  return bytes;
}

/// Matrices of kExperts experts; element 1 of expert `bad` is `value`.
std::vector<Bytes> matrices(Dtype dtype, size_t size, size_t bad, float value) {
  std::vector<Bytes> out;
  for (size_t e = 0; e < kExperts; ++e) {
    auto values = testing::normal_values(size, static_cast<uint32_t>(e));
    if (e == bad) values[1] = value;
    out.push_back(store(dtype, values));
  }
  return out;
}

// -- experts ------------------------------------------------------------------

class FiniteExpert : public ::testing::TestWithParam<const methods::ExpertInit*> {};
INSTANTIATE_TEST_SUITE_P(All, FiniteExpert, ::testing::ValuesIn(testing::rows_of(methods::expert_inits())),
                         testing::RowName());

TEST_P(FiniteExpert, NamesLayerExpertAndRoleOrKeepsTheBytes) {
  const auto plan = example_plan(kExperts, 2, {std::string(GetParam()->name), {}});
  for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown, Role::kExpertGateBias}) {
    const int64_t cols = families::is_bias(role) ? 1 : 6;
    for (const Dtype dtype : kFloats) {
      for (const float bad : kBad) {
        SCOPED_TRACE(cat(families::role_name(role), " ", io::dtype_name(dtype), " ", bad));
        const auto stored = matrices(dtype, static_cast<size_t>(8 * cols), 2, bad);
        Bytes out(stored[2].size());
        const auto grow = [&] {
          grow_expert(
              plan, kLayer, {2, 1}, role, [&](uint32_t e) { return MatrixBytes{dtype, 8, cols, stored[e]}; }, dtype,
              out);
        };
        if (GetParam()->same_bytes || (families::is_bias(role) && !GetParam()->changes_biases)) {
          grow();
          EXPECT_EQ(out, stored[2]);
        } else {
          expect_error(ErrorCode::kNonFinite,
                       {"layer 5, expert 2, ", std::string(families::role_name(role)).c_str(), cat(bad).c_str()}, grow);
        }
      }
    }
  }
}

TEST(FiniteExperts, NameThePartner) {
  const auto stored = matrices(Dtype::kF32, 48, 1, kBad[0]);
  Bytes out(stored[0].size());
  for (const methods::ExpertInit& method : methods::expert_inits()) {
    if (!method.needs_partner) continue;
    SCOPED_TRACE(method.name);
    const auto plan = example_plan(2, 2, {std::string(method.name), {}});
    expect_error(ErrorCode::kNonFinite, {"layer 5, expert 1, expert_up", "row 0, column 1"}, [&] {
      grow_expert(
          plan, kLayer, {0, 1}, Role::kExpertUp, [&](uint32_t e) { return MatrixBytes{Dtype::kF32, 8, 6, stored[e]}; },
          Dtype::kF32, out);
    });
  }
}

// 60000 fits f16 and 3e38 the others; ten times that does not.
TEST(FiniteResults, AreRefusedWhereTheyDoNotFitTheDtype) {
  const auto plan = example_plan(1, 2, {"scaled_copy", {{"factor", 10}}});
  for (const Dtype dtype : kFloats) {
    const auto stored = store(dtype, {1, 2, dtype == Dtype::kF16 ? 60000.0f : 3e38f, 4});
    Bytes out(stored.size());
    expect_error(ErrorCode::kNonFinite, {"layer 5, expert 0, expert_up", std::string(io::dtype_name(dtype)).c_str()},
                 [&] {
                   grow_expert(
                       plan, kLayer, {0, 1}, Role::kExpertUp,
                       [&](uint32_t) { return MatrixBytes{dtype, 2, 2, stored}; }, dtype, out);
                 });
  }
}

// The largest number of each dtype and the first fp32 that does not round to it.
TEST(RoundFinite, EndsWhereRoundingGivesInfinity) {
  struct Limit {
    Dtype dtype;
    float largest, too_large;
  };
  const Limit limits[] = {{Dtype::kF16, std::nextafter(65520.0f, 0.0f), 65520.0f},
                          {Dtype::kBf16, std::nextafter(0x1.ffp127f, 0.0f), 0x1.ffp127f},
                          {Dtype::kF32, std::numeric_limits<float>::max(), INFINITY}};
  for (const Limit& limit : limits) {
    SCOPED_TRACE(io::dtype_name(limit.dtype));
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> fits{sign * limit.largest}, not_so{0.0f, sign * limit.too_large};
      Bytes out(io::dtype_bytes(limit.dtype)), two(2 * out.size());
      matrix::round_finite(limit.dtype, fits, out, "w");
      EXPECT_EQ(out, store(limit.dtype, fits));
      expect_error(ErrorCode::kNonFinite, {"w: "}, [&] { matrix::round_finite(limit.dtype, not_so, two, "w"); });
    }
  }
}

// -- router -------------------------------------------------------------------

class FiniteRouter : public ::testing::TestWithParam<const methods::RouterInit*> {};
INSTANTIATE_TEST_SUITE_P(All, FiniteRouter, ::testing::ValuesIn(testing::rows_of(methods::router_inits())),
                         testing::RowName());

TEST_P(FiniteRouter, NamesLayerAndRoleOrKeepsTheBytes) {
  auto plan = example_plan(kExperts, 2, {"copy", {}}, {std::string(GetParam()->name), {}});
  for (const bool has_router_bias : {false, true}) {
    for (const Role role : {Role::kRouter, Role::kRouterBias, Role::kSelectionBias}) {
      if (role == Role::kRouterBias && !has_router_bias) continue;
      const Role changed = !GetParam()->needs_bias ? Role::kRouter
                           : has_router_bias       ? Role::kRouterBias
                                                   : Role::kSelectionBias;
      const int64_t cols = role == Role::kRouter ? 6 : 1;
      for (const Dtype dtype : kFloats) {
        for (const float bad : kBad) {
          SCOPED_TRACE(cat(families::role_name(role), " ", io::dtype_name(dtype), " ", bad));
          auto values = testing::normal_values(static_cast<size_t>(kExperts * cols), 3);
          values[1] = bad;  // of one row in four
          const Bytes before = store(dtype, values);
          Bytes out(2 * before.size()), twice = before;
          twice.insert(twice.end(), before.begin(), before.end());
          const auto grow = [&] {
            grow_router(plan, kLayer, role, {dtype, kExperts, cols, before}, out, has_router_bias);
          };
          if (role != changed || GetParam()->only_copies()) {
            grow();
            EXPECT_EQ(out, twice);
          } else {
            expect_error(ErrorCode::kNonFinite,
                         {"layer 5", std::string(families::role_name(role)).c_str(), cat(bad).c_str()}, grow);
          }
        }
      }
    }
  }
}

// -- optimizer state ----------------------------------------------------------

class FiniteMoments : public ::testing::TestWithParam<const methods::OptimizerInit*> {};
INSTANTIATE_TEST_SUITE_P(All, FiniteMoments, ::testing::ValuesIn(testing::rows_of(methods::optimizer_inits())),
                         testing::RowName());

TEST_P(FiniteMoments, NameLayerAndExpertOrKeepTheValues) {
  const std::string name(GetParam()->name);
  const auto plan = example_plan(kExperts, 2, {"copy", {}}, {"copy", {}}, {name, {}});
  for (const float bad : kBad) {
    const auto stored = matrices(Dtype::kF32, 48, 2, bad);
    const matrix::MatrixSource source = [&](uint32_t e) { return MatrixBytes{Dtype::kF32, 8, 6, stored[e]}; };
    std::vector<float> expert(48), before(12, 1.0f), router(24);
    before[4] = bad;
    const auto grow = [&] {
      grow_expert_moment(plan, kLayer, {2, 1}, Role::kExpertUp, Moment::kSecond, source, source, expert);
    };
    const auto grow_rows = [&] { grow_router_moment(plan, kLayer, Moment::kFirst, before, 3, router); };
    if (name == "reset" || name == "copy") {
      grow();
      grow_rows();
      EXPECT_EQ(std::isfinite(expert[1]), name == "reset");
      EXPECT_EQ(std::isfinite(router[12 + 4]), name == "reset");
    } else {
      expect_error(ErrorCode::kNonFinite, {"layer 5, expert 2, expert_up, exp_avg_sq", "row 0, column 1"}, grow);
      expect_error(ErrorCode::kNonFinite, {"layer 5, router, exp_avg", "row 1, column 1"}, grow_rows);
    }
  }
}

// -- on disk ------------------------------------------------------------------

/// Element 3 of a tensor of fp32.
void damage(const fs::path& model, const std::string& tensor, float value) {
  const auto checkpoint = io::Checkpoint::open(model);
  const auto entry = checkpoint.at(tensor);
  std::fstream file(entry.file->path(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(entry.file->data_start() + entry.info->offset + 3 * sizeof value));
  file.write(reinterpret_cast<const char*>(&value), sizeof value);
}

TEST(FiniteExpand, NamesTheTensorOfEveryLayoutAndLeavesNothing) {
  struct Damage {
    const char *family, *tensor, *expert_init, *router_init, *named;
  };
  const Damage damages[] = {
      {"qwen3_moe", "model.layers.1.mlp.experts.2.up_proj.weight", "copy_noise", "copy",
       "'model.layers.1.mlp.experts.2.up_proj.weight'"},
      {"qwen3_moe", "model.layers.1.mlp.experts.2.up_proj.weight", "permute_units", "copy",
       "'model.layers.1.mlp.experts.2.up_proj.weight'"},
      {"qwen3_moe", "model.layers.1.mlp.gate.weight", "copy", "perturb_new_only", "layer 1, router"},
      {"gpt_oss", "model.layers.1.mlp.experts.gate_up_proj", "drop_upcycle", "copy",
       "'model.layers.1.mlp.experts.gate_up_proj', expert 0"},
      {"gpt_oss", "model.layers.1.mlp.experts.down_proj_bias", "scaled_copy", "copy",
       "'model.layers.1.mlp.experts.down_proj_bias', expert 0"},
  };
  for (const Damage& d : damages) {
    SCOPED_TRACE(cat(d.tensor, " ", d.expert_init));
    const TempDir dir;
    tiny_model(dir / "m", d.family);
    damage(dir / "m", d.tensor, NAN);
    expect_error(ErrorCode::kNonFinite, {d.named, "nan"}, [&] {
      testing::grow(dir / "m", dir / "out",
                    {.expert_init = {d.expert_init, {}}, .router_init = methods::MethodChoice{d.router_init, {}}});
    });
    EXPECT_FALSE(fs::exists(dir / "out"));
    testing::grow(dir / "m", dir / "copied", {.router_init = methods::MethodChoice{"copy", {}}});
    EXPECT_TRUE(fs::exists(dir / "copied"));
  }
}

std::vector<families::Model> models(std::initializer_list<fs::path> directories) {
  std::vector<families::Model> out;
  for (const fs::path& directory : directories) out.push_back(families::open_model(directory));
  return out;
}

TEST(FiniteConvert, NamesTheTensor) {
  const TempDir dir;
  const auto dense = [&](const char* name) { return tiny_model(dir / name, "llama", {.sizes = {.dense_width = 48}}); };
  const fs::path good = dense("good");
  for (const char* tensor : {"model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"}) {
    const fs::path bad = dense(tensor);
    damage(bad, tensor, INFINITY);
    const auto parents = models({bad});
    auto options = testing::conversion("mixtral", 4, 2, 2);  // every matrix is scaled
    options.scale = "cbrt";
    convert::Conversion conversion(parents, convert::make_conversion_plan(parents[0].config, 1, options), nullptr);
    expect_error(ErrorCode::kNonFinite, {cat("'", tensor, "'").c_str(), "inf"},
                 [&] { (void)convert::convert(conversion, {.out = dir / "out", .threads = 2}); });
  }
  const fs::path bad = dense("trunk");
  damage(bad, "model.layers.0.self_attn.q_proj.weight", NAN);
  const auto parents = models({good, bad});
  convert::Conversion averaged(
      parents, convert::make_conversion_plan(parents[0].config, 2, testing::conversion("mixtral", 4, 2, 1)), nullptr);
  expect_error(ErrorCode::kNonFinite, {"'model.layers.0.self_attn.q_proj.weight'", "nan"},
               [&] { (void)convert::convert(averaged, {.out = dir / "averaged", .threads = 2}); });
}

}  // namespace
}  // namespace coppice::grow
