#pragma once

// Rotary position embeddings as configurations describe them; `nn` computes the angles.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/family.h"

namespace coppice::families {

/// How the frequencies of a longer context come from those of the first training.
enum class RopeScaling : uint8_t {
  kNone,
  kLinear,   ///< all divided by the factor
  kDynamic,  ///< a larger base once a sequence is longer than max_position_embeddings
  kYarn,     ///< slow ones divided by the factor, fast ones left, a ramp between; arXiv:2309.00071
  kLlama3,   ///< the same by wavelength
  kLong,     ///< longrope: a divisor for each frequency, others past the original length; arXiv:2402.13753
};

struct Rope {
  RopeScaling scaling = RopeScaling::kNone;
  double theta = 10000.0;
  int64_t dim = 0;           ///< leading dimensions of a head that turn (latent attention: all of the turned part)
  bool interleaved = false;  ///< pairs lie side by side, not half the dimensions apart
  double factor = 1;
  double attention_factor = 1;  ///< times cos and sin
  int64_t max_positions = 0, original_positions = 0;
  double beta_fast = 32, beta_slow = 1;              ///< yarn
  bool truncate = true;                              ///< yarn: its ramp begins and ends at whole dimensions
  double low_freq_factor = 1, high_freq_factor = 4;  ///< llama3
  std::vector<double> short_factors, long_factors;   ///< longrope, [dim / 2] each
  double softmax_factor = 1;                         ///< latent attention with yarn: times the softmax scale
};

struct RopeRead {
  Rope rope;
  std::vector<std::string> unsupported;
};

/// Reads both generations of transformers' files: `rope_parameters` (5), `rope_scaling` and what stands at the top (4).
/// `head_dim` is that of the turned part.
///
/// Throws   Error{kFormat} naming file and key.
/// Source   modeling_rope_utils.py of transformers 5.17.0.
RopeRead read_rope(const Json& config, std::string_view source, const Family& family, int64_t head_dim,
                   int64_t max_positions);

}  // namespace coppice::families
