#include "coppice/demo/demo.h"

#include <atomic>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/demo/arms.h"
#include "coppice/demo/page.h"
#include "coppice/io/atomic_file.h"
#include "coppice/nn/device.h"
#include "coppice/plan/selection.h"

namespace coppice::demo {
namespace {

constexpr int64_t kBatchTokens = 1024;  // with fewer, one odd document makes a gradient of ten times the usual norm
constexpr double kTokensPerMinute = 3.35e6;  // of all arms and seeds; two slow cores manage it
constexpr double kFewestEvaluationTokens = 65536;

// The folder belongs to one set of settings; another must not mix its seeds in.
void claim_directory(const DemoOptions& options) {
  auto settings = options;
  settings.json = settings.quiet = false;
  const std::string text = to_toml(settings);
  const auto path = options.out / "demo.toml";
  if (std::filesystem::exists(path)) {
    if (read_file(path) != text) {
      throw Error(
          ErrorCode::kUsage,
          cat(path, ": this folder holds a demo with other settings (choose another --out, or remove the folder)"));
    }
    return;
  }
  if (std::filesystem::exists(options.out) && !std::filesystem::is_empty(options.out)) {
    throw Error(ErrorCode::kUsage, cat(options.out, ": exists and is not a demo's folder (choose another --out)"));
  }
  std::filesystem::create_directories(options.out);
  io::write_file_atomically(path, text);
}

std::filesystem::path seed_directory(const DemoOptions& options, const SeedResult& seed) {
  return options.out / cat("seed-", seed.seed);
}

uint64_t tokens_of_seed(const Budget& plan) {
  return static_cast<uint64_t>(plan.batch_tokens * (3 * plan.steps - plan.growth_step));
}

// Trains the seeds' models side by side: two chains a seed, one thread each, so that the figures do not depend on the
// machine. Only where the user asks for more threads do they go into the models, by the number of all seeds: a demo
// that goes on computes what a whole one does.
void run_seeds(const DemoOptions& options, const PreparedData& data, const std::vector<SeedResult*>& seeds) {
  const int64_t chains = 2 * options.seeds;
  const auto threads =
      options.threads > 0 ? options.threads : std::min(chains, static_cast<int64_t>(default_threads()));
  const auto threads_each = std::max<int64_t>(1, threads / chains);
  Progress progress("demo", seeds.size() * tokens_of_seed(budget(options)), ProgressUnit::kTokens);
  std::vector<std::atomic<int>> chains_done(seeds.size());
  parallel_for(2 * seeds.size(), static_cast<size_t>(threads), [&](size_t job) {
    auto& result = *seeds[job / 2];
    const SeedSetting setting{.options = options,
                              .data = data,
                              .seed = result.seed,
                              .directory = seed_directory(options, result),
                              .threads = threads_each,
                              .on_step = [&](uint64_t tokens) { progress.advance(tokens); }};
    job % 2 == 0 ? run_grown(setting, result) : run_from_scratch(setting, result);
    if (++chains_done[job / 2] < 2) return;
    io::write_file_atomically(setting.directory / "result.json", result.to_json().dump(1) + "\n");
  });
}

}  // namespace

Budget budget(const DemoOptions& options) {
  if (!(options.minutes > 0) || options.seeds < 1)
    throw Error(ErrorCode::kUsage, "--minutes and --seeds must be positive");
  if (!(options.growth_at > 0 && options.growth_at < 1))
    throw Error(ErrorCode::kUsage, "--growth-at must lie between 0 and 1");
  // Trunk, control and upcycled arm share a seed's budget with the arm from scratch.
  const double arms = 2 + (1 - options.growth_at);
  const double tokens = options.minutes * kTokensPerMinute / static_cast<double>(options.seeds) / arms;
  Budget out;
  out.batch_tokens = kBatchTokens;
  out.steps = static_cast<int64_t>(tokens / kBatchTokens);
  out.evaluation_tokens = static_cast<uint64_t>(std::max(kFewestEvaluationTokens, tokens / 40));
  out.growth_step = std::llround(static_cast<double>(out.steps) * options.growth_at);
  if (out.steps < 40 || out.growth_step < 1 || out.growth_step >= out.steps) {
    throw Error(ErrorCode::kUsage,
                cat("--minutes ", options.minutes, " for ", options.seeds, " seeds leaves ", out.steps,
                    " steps an arm; at least 40 are wanted (give more minutes or fewer seeds)"));
  }
  return out;
}

std::vector<SeedResult> run_demo(const DemoOptions& options) {
  (void)budget(options);  // refuses before anything is made
  (void)plan::selection_rule(options.select);
  (void)nn::compute_device(options.device);
  (void)options.experts.resolve(options.base_experts);
  claim_directory(options);
  const auto data = prepare_data(options);
  std::vector<SeedResult> seeds(static_cast<size_t>(options.seeds));
  std::vector<SeedResult*> to_run;
  for (size_t i = 0; i < seeds.size(); ++i) {
    seeds[i].seed = static_cast<uint64_t>(options.first_seed) + i;
    const auto directory = seed_directory(options, seeds[i]);
    if (std::filesystem::exists(directory / "result.json")) {
      seeds[i] = SeedResult::from_json(Json::read(directory / "result.json"));
      continue;
    }
    std::filesystem::remove_all(directory);  // of a demo that was cut off
    std::filesystem::create_directories(directory);
    to_run.push_back(&seeds[i]);
  }
  run_seeds(options, data, to_run);
  io::write_file_atomically(options.out / "report.html", demo_page(options, data, seeds).html());
  return seeds;
}

}  // namespace coppice::demo
