#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace coppice::convert {

/// What a setting of the dense model's configuration costs.
struct ConditionalLoss {
  std::string_view setting;  ///< "attention_bias"
  std::vector<std::string> losses;
};

/// A family of dense models and one that they can become.
struct ConversionPair {
  std::string_view from, to;
  std::vector<std::string> changes;  ///< what is carried over in another form
  std::vector<std::string> losses;   ///< what is lost of every such model; none: all is carried over
  std::vector<ConditionalLoss> when;
};

/// All pairs, found out by mapping models of each family.
std::vector<ConversionPair> conversion_pairs();

}  // namespace coppice::convert
