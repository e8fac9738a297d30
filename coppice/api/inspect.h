#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <tuple>

#include "coppice/api/outcome.h"
#include "coppice/infer/given_family.h"
#include "coppice/options/options.h"

namespace coppice::api {

inline constexpr std::string_view kInspectSummary =
    "describe a checkpoint: family, experts, routing, parameters, bytes, lineage";

/// The options of `coppice inspect`.
struct InspectOptions {
  std::filesystem::path model;
  std::optional<std::filesystem::path> family_file;
  std::optional<std::filesystem::path> write_family;
  bool experts = false, infer = false, json = false;
  static constexpr auto fields() {
    using O = InspectOptions;
    return std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format (never changed)"),
        field("experts", &O::experts,
              "also print the L2 norm of each expert and of its router row (reads all of them)"),
        field("infer", &O::infer, "infer the family from names and shapes, and print what was found by which rule"),
        field("write-family", &O::write_family,
              "with --infer: write the family to this TOML file, to read, mend and give to --family-file"),
        field("family-file", &O::family_file, infer::kFamilyFileHelp),
        field("json", &O::json, "print one JSON object")};
  }
};

/// Does what `coppice inspect` does.
///
/// Memory   headers only; with --experts one matrix per thread.
/// Throws   as families::open_model and infer::infer_family.
Outcome inspect(const InspectOptions& options);

}  // namespace coppice::api
