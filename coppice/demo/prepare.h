#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/demo/options.h"

namespace coppice::demo {

/// The text of the demo as every arm of every seed reads it.
struct PreparedData {
  struct Domain {
    std::string name;
    std::filesystem::path train, validation;  ///< token files
    uint64_t train_tokens = 0, validation_tokens = 0;
  };
  std::vector<Domain> domains;
  std::filesystem::path tokenizer;
  Json sources;  ///< per domain: package, version, digest of the text
};

/// Fetches the text, trains the tokenizer and writes the token files into `out`; finds them there the second time.
///
/// Throws   Error{kUsage}: fewer than two domains, or a domain with too little text; what data/ throws.
PreparedData prepare_data(const DemoOptions& options);

}  // namespace coppice::demo
