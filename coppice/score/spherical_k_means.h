#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace coppice::score {

/// Clusters of rows by direction.
struct Clusters {
  at::Tensor centre_GD;        ///< f32, of norm 1; a row belongs to the centre with which its dot product is largest
  std::vector<int64_t> sizes;  ///< [G] rows
  double cosine = 0;           ///< mean of each row and its centre
};

struct ClusterSettings {
  int64_t clusters = 0;  ///< G, at most the number of rows
  int64_t steps = 50;    ///< maximum, including the first centres; fewer if no row changes its cluster
  uint64_t seed = 0;
  int64_t stream = 0;  ///< number of the random stream under that seed
};

/// k-means by angle: first centres as in k-means++, then Lloyd's steps. A cluster that becomes empty restarts at the
/// row with the largest distance from its centre.
///
/// Shapes   x_TD f32; rows of zeros belong to the first cluster.
/// Memory   about twice x.
/// Source   Dhillon & Modha, Concept decompositions for large sparse text data using clustering (2001); Arthur &
///          Vassilvitskii, k-means++ (SODA 2007).
Clusters spherical_k_means(const at::Tensor& x_TD, const ClusterSettings& settings);

}  // namespace coppice::score
