// families_generate DIRECTORY FAMILY DTYPE [KEY=NUMBER ...]: writes a tiny random model, for parity tests. Keys are
// those of ModelSizes.

#include <cstdlib>
#include <iostream>
#include <map>
#include <span>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/models/generate.h"

namespace {

using coppice::Error;
using coppice::ErrorCode;
using coppice::models::ModelSizes;

void set(coppice::models::ModelSizes& sizes, const std::string& key, int64_t value) {
  const std::map<std::string, int64_t*> numbers = {
      {"vocab_size", &sizes.vocab_size},      {"model_dim", &sizes.model_dim},
      {"num_layers", &sizes.num_layers},      {"num_heads", &sizes.num_heads},
      {"num_kv_heads", &sizes.num_kv_heads},  {"head_dim", &sizes.head_dim},
      {"num_experts", &sizes.num_experts},    {"top_k", &sizes.top_k},
      {"expert_width", &sizes.expert_width},  {"dense_width", &sizes.dense_width},
      {"shared_width", &sizes.shared_width},  {"first_dense_layers", &sizes.first_dense_layers},
      {"max_positions", &sizes.max_positions}};
  if (const auto number = numbers.find(key); number != numbers.end()) {
    *number->second = value;
  } else if (key == "tied") {
    sizes.tied = value != 0;
  } else if (key == "renormalise") {
    sizes.renormalise = value != 0;
  } else {
    throw Error(ErrorCode::kUsage, coppice::cat("unknown size '", key, "'"));
  }
}

void generate(std::span<char*> args) {
  if (args.size() < 4)
    throw Error(ErrorCode::kUsage, "usage: families_generate DIRECTORY FAMILY DTYPE [KEY=NUMBER ...]");
  coppice::models::ModelSizes sizes;
  sizes.family = args[2];
  coppice::io::Dtype dtype{};
  if (!coppice::io::parse_dtype(args[3], dtype))
    throw Error(ErrorCode::kUsage, coppice::cat("unknown dtype '", args[3], "'"));
  for (char* arg : args.subspan(4)) {
    const auto parts = coppice::split(arg, '=');
    if (parts.size() != 2) throw Error(ErrorCode::kUsage, coppice::cat("'", arg, "' is not KEY=NUMBER"));
    set(sizes, parts[0], std::stoll(parts[1]));
  }
  constexpr uint64_t kSeed = 7, kShardBytes = 64 << 10;  // small shards, so that loaders have several to put together
  coppice::models::write_random_model(args[1], coppice::models::make_config(sizes, dtype), dtype, kSeed, 0.05,
                                      kShardBytes);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    generate({argv, static_cast<size_t>(argc)});
    return 0;
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return coppice::exit_status(error.code);
  }
}
