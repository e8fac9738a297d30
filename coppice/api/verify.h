#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "coppice/api/engine.h"
#include "coppice/api/outcome.h"
#include "coppice/infer/given_family.h"
#include "coppice/options/byte_count.h"
#include "coppice/options/options.h"

namespace coppice::api {

inline constexpr std::string_view kVerifySummary =
    "check every tensor of an expanded or converted model against the model before it";

/// The options of `coppice verify`.
struct VerifyOptions {
  std::vector<std::filesystem::path> before;
  std::filesystem::path after;
  std::optional<std::filesystem::path> function;
  std::optional<uint64_t> max_tokens;
  std::optional<int64_t> sequence_length;
  std::optional<std::string> device;
  std::optional<ByteCount> max_memory;
  std::optional<uint64_t> threads;
  std::optional<std::filesystem::path> family_file;
  bool json = false;

  static constexpr auto fields() {
    using O = VerifyOptions;
    return std::tuple{
        operand("BEFORE", &O::before,
                "model directory that was expanded or converted; several if one conversion used several"),
        operand("AFTER", &O::after, "model directory that was written"),
        field("function", &O::function,
              "run both models on this token file (prefix of a .bin/.idx pair) and compare losses and logits"),
        field("max-tokens", &O::max_tokens,
              "with --function: number of tokens, from the start of the file (default: 16384; 0: all)"),
        field("sequence-length", &O::sequence_length, "with --function: tokens per window (default: 256)"),
        field("device", &O::device,
              "with --function: device to compute on: auto (a GPU if there is one; default), cpu, cuda or cuda:N"),
        field("max-memory", &O::max_memory,
              "with --function: most memory for both models, such as 8GiB (default: half of the device's)"),
        field("threads", &O::threads, "CPU threads (default: all cores)"),
        field("family-file", &O::family_file, infer::kFamilyFileHelp),
        field("json", &O::json, "print one JSON object")};
  }
};

/// Does what `coppice verify` does. The outcome is not ok if the models do not fit each other.
///
/// Memory   as verify::verify.
/// Throws   as verify::verify and verify::verify_conversion, and what `engine` throws.
Outcome verify(const VerifyOptions& options, const Engine& engine);

}  // namespace coppice::api
