#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace coppice::convert {

/// What is lost if the dense model has a certain setting.
struct ConditionalLoss {
  std::string_view setting;  ///< "attention_bias"
  std::vector<std::string> losses;
};

/// A family of dense models and a family that they can be converted to.
struct ConversionPair {
  std::string_view from, to;
  std::vector<std::string> changes;  ///< what is converted to another form
  std::vector<std::string> losses;   ///< what every such model loses; empty: nothing
  std::vector<ConditionalLoss> when;
};

/// All pairs, determined by mapping example models of each family.
std::vector<ConversionPair> conversion_pairs();

}  // namespace coppice::convert
