#include "coppice/score/score.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include "coppice/data/sampler.h"
#include "coppice/nn/decoder.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"
#include "tests/testing/token_files.h"

namespace coppice::score {
namespace {

using families::Role;
using testing::TempDir;

const ScoreSettings kSettings{.batches = 3, .batch_tokens = 160, .sequence_length = 16, .seed = 4};

struct Fixture {
  Fixture() { at::set_num_threads(1); }  // too little work for more

  TempDir dir;
  families::Model model =
      families::open_model(testing::tiny_model(dir / "m", "glm4_moe", {.sizes = {.vocab_size = 64}}));
  std::vector<data::TokenFile> tokens{data::TokenFile::open(testing::write_tokens(dir / "t", 64, 10, 100))};
};

// The gradient of the mean loss over a range of the sampler's windows, by autograd on the plain reference kernel and
// one backward pass.
std::vector<nn::Parameter> gradients(const Fixture& f, uint64_t first, int64_t count, const nn::Decoder& model,
                                     bool reset_attention = false) {
  const data::Sampler sampler(f.tokens, {}, kSettings.sequence_length, kSettings.seed);
  const int64_t length = kSettings.sequence_length;
  std::vector<int64_t> in(static_cast<size_t>(count * length)), out(in.size()), start(in.size());
  for (int64_t b = 0; b < count; ++b) {
    sampler.read(first + static_cast<uint64_t>(b), std::span(in).subspan(b * length, length),
                 std::span(out).subspan(b * length, length));
    sampler.document_starts(first + static_cast<uint64_t>(b), std::span(start).subspan(b * length, length));
  }
  const auto rows = [&](std::vector<int64_t>& v) {
    return at::from_blob(v.data(), {count, length}, at::kLong).clone();
  };
  for (const auto& p : model.parameters()) at::Tensor(p.value).mutable_grad().reset();
  nn::ForwardOptions forward{.kernel = kernels::MoeKernel::kReference};
  if (reset_attention) forward.document_start_BS = rows(start);
  model.loss(rows(in), rows(out), forward).loss.backward();
  return model.parameters();
}

at::Tensor part_gradient(const std::vector<nn::Parameter>& parameters, Role role, int64_t layer) {
  return nn::find_parameter(parameters, role, layer).value.grad().to(at::kDouble).flatten(1);
}

TEST(ScoreModel, AgreesWithAutogradOverAllTokensAtOnce) {
  const Fixture f;
  const auto scores = score_model(f.model, f.tokens, kSettings);
  const auto model = nn::Decoder::load(f.model, nn::ComputeDtype::kF32);
  const auto parameters = gradients(f, 0, 30, model);
  EXPECT_EQ(scores.tokens_seen, 480u);
  for (const bool first : {true, false}) {
    const Role role = first ? Role::kExpertGate : Role::kExpertDown;
    for (int64_t layer = 0; layer < 2; ++layer) {
      const at::Tensor g = part_gradient(parameters, role, layer);
      const at::Tensor w = nn::find_parameter(parameters, role, layer).master.detach().to(at::kDouble).flatten(1);
      const at::Tensor g2 = g.square().sum(1), w2 = w.square().sum(1), wg = (w * g).sum(1);
      const auto value = [&](const char* metric, size_t e) {
        const auto& m = scores.metrics.at(metric);
        return (first ? m.fc1 : m.fc2).sum.at(layer).at(e);
      };
      for (int64_t e = 0; e < 4; ++e) {
        const double gg = g2[e].item<double>(), ww = w2[e].item<double>();
        EXPECT_NEAR(value("gradient_squared", e), gg, 1e-4 * gg);
        EXPECT_NEAR(value("gradient_norm", e), std::sqrt(gg), 1e-4 * std::sqrt(gg));
        EXPECT_NEAR(value("weight_norm", e), std::sqrt(ww), 1e-6 * std::sqrt(ww));
        EXPECT_NEAR(value("weight_grad_product", e), std::sqrt(gg * ww), 1e-4 * std::sqrt(gg * ww));
        EXPECT_NEAR(value("taylor", e), std::abs(wg[e].item<double>()), 1e-4 * std::sqrt(gg * ww));
      }
    }
  }
}

// Documents of 7 tokens in windows of 16, for a model in memory and one that comes through layer by layer.
TEST(ScoreModel, KeepsDocumentsApartWhereTrainingDoes) {
  Fixture f;
  f.tokens = {data::TokenFile::open(testing::write_tokens(f.dir / "short", 64, 150, 7))};
  const auto model = nn::Decoder::load(f.model, nn::ComputeDtype::kF32);
  auto settings = kSettings;
  settings.reset_attention = true;
  const auto scores = score_model(f.model, f.tokens, settings), across = score_model(f.model, f.tokens, kSettings);
  settings.max_memory_bytes = 1;
  settings.out = f.dir / "scores.json";
  EXPECT_EQ(score_model(f.model, f.tokens, settings).to_json().dump(), scores.to_json().dump());
  EXPECT_TRUE(scores.to_json().at("tokens").at("reset_attention").as_bool());
  EXPECT_TRUE(plan::Scores::from_json(scores.to_json(), "test").reset_attention);
  EXPECT_EQ(across.to_json().at("tokens").find("reset_attention"), nullptr);
  testing::expect_error(ErrorCode::kUsage, {"--reset-attention"},
                        [&] { (void)plan::merge_scores(std::vector{scores, across}); });

  const auto parameters = gradients(f, 0, 30, model, true);  // 3 batches of 160 tokens
  for (const auto& [layer, found] : scores.metrics.at("gradient_squared").fc1.sum) {
    const auto wanted = part_gradient(parameters, Role::kExpertGate, layer).square().sum(1);
    for (size_t e = 0; e < found.size(); ++e) {
      const double value = wanted[static_cast<int64_t>(e)].item<double>();
      EXPECT_NEAR(found[e], value, 1e-4 * value) << layer << " " << e;
    }
    EXPECT_NE(found, across.metrics.at("gradient_squared").fc1.sum.at(layer));
  }
}

TEST(ScoreModel, SumsBatchwiseMetricsAndTheirSquaresOverBatches) {
  const Fixture f;
  const auto scores = score_model(f.model, f.tokens, kSettings);
  const auto model = nn::Decoder::load(f.model, nn::ComputeDtype::kF32);
  std::vector<double> sum(4, 0.0), sum_sq(4, 0.0);
  for (uint64_t batch = 0; batch < 3; ++batch) {
    const at::Tensor g2 = part_gradient(gradients(f, batch * 10, 10, model), Role::kExpertDown, 1).square().sum(1);
    for (int64_t e = 0; e < 4; ++e) {
      sum[e] += g2[e].item<double>();
      sum_sq[e] += g2[e].item<double>() * g2[e].item<double>();
    }
  }
  const auto& fisher = scores.metrics.at("batch_fisher").fc2;
  for (size_t e = 0; e < 4; ++e) {
    EXPECT_NEAR(fisher.sum.at(1)[e], sum[e], 1e-4 * sum[e]);
    EXPECT_NEAR(fisher.sum_sq.at(1)[e], sum_sq[e], 2e-4 * sum_sq[e]);
  }
  const auto& load = scores.metrics.at("load").fc1.sum.at(0);
  EXPECT_NEAR(std::accumulate(load.begin(), load.end(), 0.0), 3.0, 1e-12) << "shares of each of 3 batches add up to 1";
  EXPECT_EQ(scores.metrics.at("load").fc1, scores.metrics.at("load").fc2);
  const auto& mass = scores.metrics.at("gate_mass").fc1.sum.at(0);
  EXPECT_NEAR(std::accumulate(mass.begin(), mass.end(), 0.0), 480.0, 1e-2) << "renormalised gates add up to 1 a token";
  EXPECT_TRUE(scores.metrics.at("gradient_squared").fc1.sum_sq.empty());
}

TEST(ScoreModel, GivesTheSameNumbersTwiceAndReadsBack) {
  const Fixture f;
  const auto scores = score_model(f.model, f.tokens, kSettings);
  EXPECT_EQ(scores.to_json().dump(), score_model(f.model, f.tokens, kSettings).to_json().dump());
  EXPECT_EQ(plan::Scores::from_json(Json::parse(scores.to_json().dump(), "s"), "s").metrics, scores.metrics);
  EXPECT_EQ(scores.model_digest, f.model.digest());
  EXPECT_EQ(scores.tokens_digest, f.tokens.front().digest());
}

TEST(ScoreModel, TakesSecondMomentsFromTheOptimizerState) {
  const Fixture f;
  testing::write_trainer(f.dir / "m");
  const auto scores = score_model(families::open_model(f.dir / "m"), f.tokens, kSettings);
  EXPECT_EQ(scores.second_moment, "trainer");
  const auto state = models::OptimizerState::open(f.model);
  const auto down = state->at(families::tensor_name(f.model.config, Role::kExpertDown, 1, 2), "exp_avg_sq");
  double v2 = 0;
  for (size_t i = 0; i < down.data().size(); i += 4) {
    float v = 0;
    std::memcpy(&v, down.data().data() + i, 4);
    v2 += static_cast<double>(v) * v;
  }
  EXPECT_NEAR(scores.metrics.at("approx_fisher").fc2.sum.at(1)[2],
              scores.metrics.at("gradient_squared").fc2.sum.at(1)[2] / (std::sqrt(v2) + 1e-8), 1e-12);
}

TEST(ScoreModel, EstimatesSecondMomentsFromTheBatchesElse) {
  const Fixture f;
  const auto scores = score_model(f.model, f.tokens, kSettings);
  EXPECT_EQ(scores.second_moment, "batches");
  const auto model = nn::Decoder::load(f.model, nn::ComputeDtype::kF32);
  at::Tensor v_EN = at::zeros({}, at::kDouble);
  for (uint64_t batch = 0; batch < 3; ++batch) {
    v_EN = v_EN + part_gradient(gradients(f, batch * 10, 10, model), Role::kExpertGate, 0).square() / 3;
  }
  const at::Tensor v_E = v_EN.square().sum(1).sqrt();
  for (size_t e = 0; e < 4; ++e) {
    const double wanted = scores.metrics.at("gradient_squared").fc1.sum.at(0)[e] / (v_E[e].item<double>() + 1e-8);
    EXPECT_NEAR(scores.metrics.at("approx_fisher").fc1.sum.at(0)[e], wanted, 1e-3 * wanted);
  }
}

TEST(ScoreModel, HasTheEffectiveTopKOfEveryLayer) {
  const Fixture f;
  const auto scores = score_model(f.model, f.tokens, kSettings);
  for (const int64_t layer : {0, 1}) {
    const double mean = scores.gate_concentration.sum.at(layer) / 3;
    EXPECT_GT(mean, 1.0);
    EXPECT_LE(mean, 2.0 + 1e-12) << "top-K is 2";
    EXPECT_GE(scores.gate_concentration.sum_sq.at(layer) / 3, mean * mean * (1 - 1e-12));
  }
}

std::set<std::string> names_in(const std::filesystem::path& directory) {
  std::set<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) out.insert(entry.path().filename().string());
  return out;
}

struct Deep : Fixture {
  families::Model deep = families::open_model(testing::tiny_model(
      dir / "deep", "glm4_moe", {.sizes = {.vocab_size = 64, .num_layers = 5, .first_dense_layers = 1}}));
};

TEST(ScoreModel, ChangesNoBitWithTheMemory) {
  const Deep f;
  for (const auto dtype : {nn::ComputeDtype::kF32, nn::ComputeDtype::kBf16}) {
    auto settings = kSettings;
    settings.dtype = dtype;
    const auto whole = score_model(f.deep, f.tokens, settings).to_json().dump();
    settings.out = f.dir / "scores.json";
    EXPECT_EQ(score_model(f.deep, f.tokens, settings).to_json().dump(), whole);
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{400'000}, uint64_t{2'000'000}}) {
      settings.max_memory_bytes = bytes;
      EXPECT_EQ(score_model(f.deep, f.tokens, settings).to_json().dump(), whole) << bytes;
    }
    settings.out.clear();  // nowhere to spill to: in memory
    EXPECT_EQ(score_model(f.deep, f.tokens, settings).to_json().dump(), whole);
  }
  EXPECT_TRUE(names_in(f.dir.path()) ==
              (std::set<std::string>{"deep", "m", "t.bin", "t.checked.json", "t.idx", "t.json"}))
      << "a run leaves nothing but its output and the digest of its tokens";
}

TEST(ScoreModel, RefusesWhatCannotBeScored) {
  const Fixture f;
  const auto dense = families::open_model(testing::tiny_model(f.dir / "d", "llama", {.sizes = {.vocab_size = 64}}));
  testing::expect_error(ErrorCode::kUnsupported, {"llama", "no experts"},
                        [&] { (void)score_model(dense, f.tokens, kSettings); });
  auto odd = kSettings;
  odd.batch_tokens = 100;
  testing::expect_error(ErrorCode::kUsage, {"batch-tokens", "multiple", "16"},
                        [&] { (void)score_model(f.model, f.tokens, odd); });
}

}  // namespace
}  // namespace coppice::score
