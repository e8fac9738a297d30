#include "coppice/demo/demo.h"

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/demo/arms.h"
#include "coppice/demo/page.h"
#include "coppice/io/atomic_file.h"

namespace coppice::demo {
namespace {

constexpr int64_t kBatchTokens = 2048;
constexpr double kTokensPerMinute =
    1.0e6;  // trained over all arms and seeds; leaves a third of the time to spare on two cores

// The folder belongs to one set of settings; another must not mix its seeds in.
void claim_directory(const DemoOptions& options) {
  auto settings = options;
  settings.json = settings.quiet = false;
  const std::string text = to_toml(settings);
  const auto path = options.out / "demo.toml";
  if (std::filesystem::exists(path)) {
    if (io::read_file(path) != text) {
      throw Error(
          ErrorCode::kUsage,
          cat(path, ": this folder holds a demo with other settings (choose another --out, or remove the folder)"));
    }
    return;
  }
  if (std::filesystem::exists(options.out) && !std::filesystem::is_empty(options.out)) {
    throw Error(ErrorCode::kUsage, cat(options.out, ": exists and is no demo's folder (choose another --out)"));
  }
  std::filesystem::create_directories(options.out);
  io::write_file_atomically(path, text);
}

SeedResult run_or_read_seed(const DemoOptions& options, const PreparedData& data, uint64_t seed) {
  const auto directory = options.out / cat("seed-", seed);
  const auto record = directory / "result.json";
  if (std::filesystem::exists(record)) return SeedResult::from_json(Json::read(record));
  std::filesystem::remove_all(directory);  // of a demo that was cut off
  std::filesystem::create_directories(directory);
  log_info(cat("seed ", seed));
  auto result = run_seed(options, data, seed, directory);
  io::write_file_atomically(record, result.to_json().dump(1) + "\n");
  return result;
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
  claim_directory(options);
  const auto data = prepare_data(options);
  std::vector<SeedResult> seeds;
  for (int64_t i = 0; i < options.seeds; ++i) {
    seeds.push_back(run_or_read_seed(options, data, static_cast<uint64_t>(options.first_seed + i)));
  }
  io::write_file_atomically(options.out / "report.html", demo_page(options, data, seeds).html());
  return seeds;
}

}  // namespace coppice::demo
