#pragma once

// Whether any token can choose a new expert of a layer, from bounds on the scores.

#include <optional>
#include <vector>

#include "coppice/families/model_config.h"
#include "coppice/grow/grown_layer_detail.h"
#include "coppice/plan/plan.h"

namespace coppice::grow::detail {

/// The routers of one layer. Biases that the family does not have are empty.
struct LayerRouting {
  const methods::LayerPlan* layer = nullptr;
  int64_t experts_before = 0, experts_after = 0, top_k = 0;
  families::Routing routing;
  GrownRows weight;
  std::optional<GrownRows> bias, selection_bias;
  std::vector<float> input_scale;  ///< [d]: the weights of the RMS norm that the router's input comes from; or empty

  bool originals_unchanged() const;  ///< rows and biases
  bool scores_like_parents() const;  ///< all rows and biases, including those of originals
  /// The bias that experts are chosen with: the selection bias, or the router bias if there is none.
  const GrownRows* choice_bias() const;
};

enum class Chosen {
  kNever,   ///< no token can choose a new expert
  kUnsure,  ///< all biases are lowered, but not far enough to exclude a choice
  kMay,     ///< some are not lowered
  kSurely,  ///< every token chooses one of them
};

/// Whether new experts can be chosen in the layer with an unchanged top-K. Scores of sigmoids and softmaxes lie between
/// 0 and 1; logits of a router whose input is normalised are bounded by its rows' lengths: |x * w| <= sqrt(d) * |scale
/// * w|.
Chosen new_experts_chosen(const LayerRouting& layer);

/// The largest relative increase of a parent's share of the softmax by its copies.
double softmax_share_of_copies(const LayerRouting& layer);

}  // namespace coppice::grow::detail
