#include <algorithm>
#include <iostream>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/device.h"
#include "coppice/cli/ranks.h"
#include "coppice/cli/threads.h"
#include "coppice/data/token_file.h"
#include "coppice/io/output_place.h"
#include "coppice/nn/decoder.h"
#include "coppice/options/options.h"
#include "coppice/report/html.h"
#include "coppice/score/router_rows.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary =
    "make router rows for `convert`: k-means of the inputs of each feed-forward layer";

struct ClusterOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> tokens;
  std::filesystem::path out;
  int64_t clusters = 8;
  uint64_t tokens_used = 16384, seed = 0;
  int64_t sequence_length = 256;
  double std = 0.02;
  bool reset_attention = false;
  std::string dtype = "f32", device{kAutoDevice};
  std::optional<uint64_t> threads;
  bool json = false;

  static constexpr auto fields() {
    using O = ClusterOptions;
    return std::tuple{
        operand("MODEL", &O::model, "dense model in Hugging Face format"),
        operand("TOKENS", &O::tokens, "token files to calibrate on (prefixes of .bin/.idx pairs)"),
        field("out", &O::out,
              "file to write, for `coppice convert --router-rows`; an earlier file of router rows is replaced"),
        field("clusters", &O::clusters,
              "number of rows per router: experts / granularity with virtual groups, else the number of experts"),
        field("tokens", &O::tokens_used, "number of tokens to cluster"),
        field("sequence-length", &O::sequence_length, "tokens per window"),
        field("reset-attention", &O::reset_attention, "attention stays within a document, and positions restart at 0"),
        field("std", &O::std,
              "scale the rows so that their logits vary as much as those of random rows with this standard deviation"),
        field("seed", &O::seed, "random seed of the chosen windows and of the first centres"),
        field("dtype", &O::dtype, "dtype of the computation: f32 or bf16"),
        field("device", &O::device, kDeviceHelp),
        field("threads", &O::threads, "CPU threads (default: all cores)"),
        field("json", &O::json, kJsonHelp)};
  }
};

Json to_json(const ClusterOptions& o, const std::vector<score::LayerClusters>& layers) {
  Json json = Json::object();
  json["out"] = o.out.string();
  json["tokens"] = o.tokens_used;
  json["layers"] = Json::array();
  for (const auto& layer : layers) {
    Json row = Json::object();
    row["sizes"] = Json::array_of(layer.clusters.sizes);
    row["cosine"] = layer.clusters.cosine;
    json["layers"].push_back(std::move(row));
  }
  return json;
}

void print(const ClusterOptions& o, const std::vector<score::LayerClusters>& layers) {
  const auto share = [&](int64_t size) {
    return cat(fixed_text(100 * static_cast<double>(size) / static_cast<double>(o.tokens_used), 1), " %");
  };
  report::Table table{{"layer", "largest cluster", "smallest", "mean cosine with the centre"}, {}};
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto [least, most] = std::ranges::minmax(layers[i].clusters.sizes);
    table.rows.push_back({cat(i), share(most), share(least), fixed_text(layers[i].clusters.cosine, 3)});
  }
  std::cout << cat("wrote ", shown(o.out.string()), ": ", layers.size(), " layers with ", o.clusters,
                   " rows each, from ", o.tokens_used, " tokens\n\n", report::text_table(table));
}

void cluster(const ClusterOptions& o, const Ranks& ranks) {
  if (o.out.empty()) {
    throw Error(ErrorCode::kUsage, "out: not given; wanted the file to write, such as --out rows.safetensors");
  }
  const auto dtype = nn::compute_dtype(o.dtype);
  const auto device = use_device(o.device);
  use_threads(o.threads);
  const auto model = families::open_model(o.model);
  const auto files = data::open_token_files(o.model, model.config.vocab_size, o.tokens);
  const score::RouterRowSettings settings{.clusters = o.clusters,
                                          .tokens = o.tokens_used,
                                          .sequence_length = o.sequence_length,
                                          .reset_attention = o.reset_attention,
                                          .std = o.std,
                                          .seed = o.seed,
                                          .dtype = dtype,
                                          .device = device,
                                          .world = ranks.world};
  score::check_settings(model, settings);
  auto inputs = o.tokens;
  inputs.push_back(o.model);
  io::check_output_file(o.out, {"rows of routers", score::is_router_rows}, inputs);
  const auto layers = score::cluster_inputs(model, files, settings);
  if (!ranks.is_first()) return;
  score::write_router_rows(o.out, layers);
  if (o.json) {
    std::cout << to_json(o, layers).dump(2) << "\n";
  } else {
    print(o, layers);
  }
}

int run(std::span<const std::string_view> args) {
  const auto options = parse<ClusterOptions>("cluster", kSummary, args);
  on_ranks(options, /*expert_parallel=*/1, args, cluster);
  return 0;
}

}  // namespace

extern const Command kCluster;
const Command kCluster{"cluster", kSummary, run};

}  // namespace coppice::cli
