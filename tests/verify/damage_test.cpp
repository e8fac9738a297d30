// What verify must refuse: of every family and every class of tensors a changed byte, a zeroed row, an exchange, a
// loss.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/verify.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/surgery_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::verify {
namespace {

using methods::MethodChoice;

namespace fs = std::filesystem;
using families::Family;
using families::Model;
using families::Role;
using families::TensorSlot;
using testing::TempDir;

/// An expanded model whose file of weights is changed and put back.
class Damaged {
 public:
  Damaged(const fs::path& before, fs::path after)
      : before_(families::open_model(before)),
        after_(std::move(after)),
        file_(after_ / "model.safetensors"),
        whole_(read_file(file_)) {
    const auto checkpoint = io::Checkpoint::open(after_);
    for (const std::string& name : checkpoint.names()) {
      const auto entry = checkpoint.at(name);
      spans_[name] = {entry.file->data_start() + entry.info->offset, entry.info->bytes};
      if (!entry.info->shape.empty()) rows_[name] = entry.info->shape.front();
    }
    bytes_ = whole_;
  }

  const fs::path& path() const { return after_; }
  bool has(const std::string& name) const { return spans_.contains(name); }
  std::span<char> tensor(const std::string& name) {
    return std::span(bytes_).subspan(spans_.at(name).first, spans_.at(name).second);
  }
  std::span<char> first_row(const std::string& name) {
    return tensor(name).first(spans_.at(name).second / static_cast<size_t>(rows_.at(name)));
  }
  void exchange(const std::string& a, const std::string& b) {
    std::swap_ranges(tensor(a).begin(), tensor(a).end(), tensor(b).begin());
  }
  bool is_changed() const { return bytes_ != whole_; }

  /// What verify says of the changed file: its problems, or the error of a model that cannot be opened.
  std::vector<std::string> problems() {
    io::write_file_atomically(file_, bytes_);
    bytes_ = whole_;
    try {
      const VerifyResult result = verify(before_, families::open_model(after_), 1);
      EXPECT_EQ(result.ok, result.problems.empty());
      return result.problems;
    } catch (const Error& error) {
      return {error.what()};
    }
  }
  void restore() { io::write_file_atomically(file_, whole_); }

 private:
  Model before_;
  fs::path after_, file_;
  std::string whole_, bytes_;
  std::map<std::string, std::pair<size_t, size_t>> spans_;
  std::map<std::string, int64_t> rows_;
};

fs::path model_of(const fs::path& directory, const Family& family) {
  if (family.surgery_only) return testing::surgery_model(directory, family);
  return testing::tiny_model(directory, family.model_type,
                             {.sizes = {.vocab_size = 16,
                                        .model_dim = 16,
                                        .num_layers = 2,
                                        .num_heads = 2,
                                        .num_kv_heads = 1,
                                        .head_dim = 8,
                                        .expert_width = 8,
                                        .dense_width = 16},
                              .std = 0.02});
}

std::vector<const Family*> moe_families() {
  std::vector<const Family*> out;
  for (const Family* family : families::all_families()) {
    if (family->has_moe()) out.push_back(family);
  }
  return out;
}

class DamageOfEveryFamily : public ::testing::TestWithParam<const Family*> {
 protected:
  DamageOfEveryFamily() : model_(model_of(dir_ / "m", *GetParam())) {
    io::write_file_atomically(model_ / "tokenizer.json", R"({"model": {}})");
    testing::grow(model_, dir_ / "out", {.router_init = MethodChoice{"copy_noise", {}}, .seed = 3});
  }
  Model grown() const { return families::open_model(dir_ / "out"); }

  TempDir dir_;
  fs::path model_;
};
INSTANTIATE_TEST_SUITE_P(Verify, DamageOfEveryFamily, ::testing::ValuesIn(moe_families()), [](const auto& test) {
  std::string name(test.param->model_type);
  std::ranges::replace_if(name, [](char c) { return c == '-' || c == '.'; }, '_');
  return name;
});

/// A tensor of each class: by role, of an original and of a copy, the last ones.
std::map<std::string, std::string> tensor_of_each_class(const Model& model, int64_t originals) {
  std::map<std::string, std::string> out;
  for (const TensorSlot& slot : model.slots) {
    if (model.checkpoint.at(slot.name).info->bytes == 0) continue;
    const char* whose = slot.expert < 0 ? "" : slot.expert < originals ? " of an original" : " of a copy";
    out[cat(families::role_name(slot.role()), whose)] = slot.name;
  }
  return out;
}

TEST_P(DamageOfEveryFamily, NoticesEveryDamageToAnyClassOfTensors) {
  Damaged damaged(model_, dir_ / "out");
  ASSERT_EQ(damaged.problems(), std::vector<std::string>{});
  for (const auto& [what, name] : tensor_of_each_class(grown(), 4)) {
    for (const char* damage : {"first byte", "last byte", "zeroed row"}) {
      const auto bytes = damaged.tensor(name);
      if (std::string(damage) == "first byte") bytes.front() ^= 1;
      if (std::string(damage) == "last byte") bytes.back() ^= 0x40;
      if (std::string(damage) == "zeroed row") std::ranges::fill(damaged.first_row(name), 0);
      if (!damaged.is_changed()) continue;  // zeros it was
      const auto problems = damaged.problems();
      ASSERT_EQ(problems.size(), 1u) << what << ", " << damage << ": " << join(problems, "\n");
      EXPECT_NE(problems.front().find(cat("'", name, "'")), std::string::npos) << problems.front();
    }
  }
}

TEST_P(DamageOfEveryFamily, NoticesTensorsThatWereExchanged) {
  Damaged damaged(model_, dir_ / "out");
  const Model model = grown();
  std::map<std::string, std::vector<std::string>> alike;  // by dtype and shape: what a converter can take for another
  for (const TensorSlot& slot : model.slots) {
    const auto& info = *model.checkpoint.at(slot.name).info;
    if (families::has_rows(slot.role()) || families::is_expert(slot.role()))
      alike[cat(io::dtype_name(info.dtype), shape_text(info.shape))].push_back(slot.name);
  }
  size_t exchanged = 0;
  for (const auto& [shape, names] : alike) {
    for (size_t i = 0; i + 1 < names.size(); i += 1 + names.size() / 7) {
      for (const size_t other : {i + 1, names.size() - 1}) {
        if (other <= i) continue;
        damaged.exchange(names[i], names[other]);
        if (!damaged.is_changed()) continue;  // copies of one parent
        ++exchanged;
        EXPECT_FALSE(damaged.problems().empty()) << names[i] << " and " << names[other];
      }
    }
  }
  EXPECT_GT(exchanged, 0u);
}

TEST_P(DamageOfEveryFamily, NoticesDamageToOriginalsWithoutALineage) {
  fs::remove(dir_ / "out" / io::kLineageFile);
  Damaged damaged(model_, dir_ / "out");
  ASSERT_EQ(damaged.problems(), std::vector<std::string>{});
  for (const auto& [what, name] : tensor_of_each_class(grown(), 4)) {
    if (what.ends_with("of a copy")) continue;
    for (const bool zero : {false, true}) {
      damaged.tensor(name)[1] ^= 1;  // the first tensor of a stack, the first row of a router: an original's
      if (zero) std::ranges::fill(damaged.first_row(name), 0);
      if (!damaged.is_changed()) continue;
      const auto problems = damaged.problems();
      ASSERT_FALSE(problems.empty()) << what << (zero ? ", zeroed row" : ", one byte");
    }
  }
}

TEST_P(DamageOfEveryFamily, NoticesALostOrChangedFile) {
  const fs::path file = dir_ / "out" / "tokenizer.json";
  Damaged damaged(model_, dir_ / "out");
  io::write_file_atomically(file, R"({"model": {"a": 1}})");
  EXPECT_THAT(damaged.problems(), ::testing::ElementsAre(::testing::HasSubstr("'tokenizer.json': changed")));
  fs::remove(file);
  EXPECT_THAT(damaged.problems(), ::testing::ElementsAre(::testing::HasSubstr("'tokenizer.json': is missing")));
}

// The case of a public report: one matrix of one expert, everything else as it was.
class OneExpert : public ::testing::TestWithParam<bool> {
 protected:
  OneExpert() {
    testing::tiny_model(dir_ / "m", "qwen3_moe", {.std = 0.02});
    testing::grow(dir_ / "m", dir_ / "out", {.router_init = MethodChoice{"copy", {}}});
    if (!GetParam()) fs::remove(dir_ / "out" / io::kLineageFile);
    damaged_.emplace(dir_ / "m", dir_ / "out");
  }
  static std::string name(int64_t expert, const char* matrix) {
    return cat("model.layers.0.mlp.experts.", expert, ".", matrix, "_proj.weight");
  }
  void copy(const std::string& from, const std::string& to) {
    std::ranges::copy(damaged_->tensor(from), damaged_->tensor(to).begin());
  }
  void expect_problem(const std::string& tensor) {
    EXPECT_THAT(damaged_->problems(), ::testing::Contains(::testing::HasSubstr(cat("'", tensor, "'"))));
  }
  TempDir dir_;
  std::optional<Damaged> damaged_;
};
INSTANTIATE_TEST_SUITE_P(Verify, OneExpert, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "WithItsLineage" : "WithoutALineage"; });

TEST_P(OneExpert, WithGateAndUpExchangedIsFound) {
  for (const int64_t expert : {1, 5}) {
    damaged_->exchange(name(expert, "gate"), name(expert, "up"));
    expect_problem(name(expert, "gate"));
  }
}

TEST_P(OneExpert, WithAMatrixOfAnotherIsFound) {
  for (const char* matrix : {"gate", "up", "down"}) {
    for (const int64_t expert : {1, 5}) {
      copy(name(2, matrix), name(expert, matrix));
      expect_problem(name(expert, matrix));
    }
  }
}

TEST_P(OneExpert, WithAZeroedMatrixOrOneByteIsFound) {
  for (const int64_t expert : {1, 5}) {
    std::ranges::fill(damaged_->tensor(name(expert, "gate")), 0);
    expect_problem(name(expert, "gate"));
    damaged_->tensor(name(expert, "up"))[3] ^= 0x40;
    expect_problem(name(expert, "up"));
  }
}

TEST_P(OneExpert, WhoseRouterRowIsHalvedIsFound) {
  const std::string router = "model.layers.0.mlp.gate.weight";
  const auto row = damaged_->first_row(router);
  for (size_t at = 0; at < row.size(); at += sizeof(float)) {
    float x = 0;
    std::memcpy(&x, &row[at], sizeof x);
    x /= 2;
    std::memcpy(&row[at], &x, sizeof x);
  }
  expect_problem(router);  // without a lineage: of a copy whose row is not its parent's as those of the others are
}

// Optimizer state.

class Trainer : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Verify, Trainer, ::testing::Values("glm4_moe", "gpt_oss"));

TEST_P(Trainer, IsMadeAgainAndCompared) {
  const TempDir dir;
  testing::tiny_model(dir / "m", GetParam(), {.dtype = io::Dtype::kBf16, .std = 0.02});
  testing::write_trainer(dir / "m");
  testing::grow(dir / "m", dir / "out",
                {.expert_init = {"copy_noise", {}}, .optimizer_state = MethodChoice::from_text("share")});
  const auto problems = [&] {
    const VerifyResult result = verify(families::open_model(dir / "m"), families::open_model(dir / "out"), 2);
    if (result.ok) {
      EXPECT_GT(result.optimizer_tensors, 100);
    }
    return result.problems;
  };
  EXPECT_THAT(problems(), ::testing::IsEmpty());
  const fs::path shard = dir / "out" / io::kTrainerFolder / "optimizer-00001-of-00001.safetensors";
  const std::string whole = read_file(shard);
  const auto file = io::SafetensorsFile::open(shard);
  for (const char* part : {".master", ".exp_avg", ".exp_avg_sq", ".step"}) {
    const auto found = std::ranges::find_if(file.tensors(), [&](const auto& t) {
      return t.name.ends_with(part) && t.name.find("experts") != std::string::npos;
    });
    std::string bytes = whole;
    bytes[file.data_start() + found->offset + found->bytes - 1] ^= 0x40;
    io::write_file_atomically(shard, bytes);
    EXPECT_THAT(problems(), ::testing::ElementsAre(::testing::HasSubstr(cat("'", found->name, "'"))));
  }
  io::write_file_atomically(shard, whole);
  io::write_file_atomically(dir / "out" / io::kTrainerFolder / io::kTrainerFile, R"({"step": 8})");
  EXPECT_THAT(problems(), ::testing::ElementsAre(::testing::HasSubstr("trainer.json': changed")));
  fs::remove(shard);
  EXPECT_THAT(problems(), ::testing::Contains(::testing::HasSubstr("trainer")));
  fs::remove_all(dir / "out" / io::kTrainerFolder);
  EXPECT_THAT(problems(), ::testing::Contains(::testing::HasSubstr("is missing")));
}

}  // namespace
}  // namespace coppice::verify
