#pragma once

// Describes the quantisation in a configuration as text, the number of values per stored element, and which tensors have
// the values of a quantised matrix.

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/families/model_config.h"
#include "coppice/io/checkpoint.h"

namespace coppice::families {

namespace detail {

/// "compressed-tensors int4 (pack-quantized)", "gptq int4", "modelopt NVFP4"; empty without a quantization_config.
/// Looks at `section` (a text_config) first, then at the whole file.
std::string quantisation_text(const Json& config, const Json& section);

/// Bits of one quantised value; 0 if the configuration does not say.
int64_t quantised_bits(const Json& config, const Json& section);

/// Whether formats use this last part of a name for the packed values of a matrix, in place of its weight.
bool holds_packed_values(std::string_view name);

/// Whether a companion of a quantised matrix has the values themselves, whatever its name: it is not a floating-point
/// type, has two dimensions or more, and is no scale or zero point.
bool stands_for_matrix(std::string_view name, io::Dtype dtype, const io::TensorShape& shape);

}  // namespace detail

/// The object that describes the quantisation; nullptr if there is none.
const Json* find_quantization(const Json& config, const Json& section);

/// The configuration with lists of modules, and maps by module, changed from `before` to `after` experts: new experts
/// are added like the others, removed ones are deleted. Names in other parts of a multimodal model do not change.
/// `source` names the file in errors.
///
/// Throws   Error{kUnsupported} naming place and text: some experts are named and others not, or differently; or a text
///          names experts by number in another way than a module's name (a pattern, a range).
Json with_expert_names(const Json& json, int64_t before, int64_t after, std::string_view source = "config.json");

/// How the values of a quantised matrix are stored.
enum class ValueCode : uint8_t {
  kFloat8E4M3,
  kFloat8E5M2,
  kInt8,
  kFloat4,     ///< E2M1, two a byte, the low half first
  kPackedInt,  ///< `bits` each, minus half their range, in 32-bit words from the lowest bit on
};

/// The bf16 tensor that the parts of a quantised one stand for: value (r, c) of each matrix is (code - zero point) *
/// scale(r / block_rows, c / block_cols), computed in fp32 and rounded once.
///
/// Shapes   matrices are [rows, cols] = [out, in]; a stack has `count` of them, one after another.
struct QuantisedTensor {
  uint64_t number = 0;  ///< of this tensor among those of the model, from 1 on
  io::TensorShape shape = {};
  bool is_stack = false;
  int64_t count = 1, rows = 0, cols = 0;
  ValueCode code = ValueCode::kFloat8E4M3;
  int bits = 0;
  io::Checkpoint::Entry values = {}, scales = {};
  io::Checkpoint::Entry global_scale = {};  ///< a factor of all scales; no file: there is none
  io::Checkpoint::Entry zero_points = {};   ///< like the scales, or packed along the rows
  io::Checkpoint::Entry order = {};         ///< the block of each column, if they are not in order
  int64_t block_rows = 1, block_cols = 1, scale_rows = 1, scale_cols = 1;
  bool scales_for_all = false;    ///< one scale for all matrices of the stack
  bool global_divides = false;    ///< scales are divided by the global one
  bool global_of_matrix = false;  ///< each matrix of the stack has its own
};

/// Adds the quantisation to an error about a quantised model that does not name it.
template <class Work>
auto naming_quantisation(const ModelConfig& config, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    const bool about_model = error.code == ErrorCode::kUsage || error.code == ErrorCode::kFormat ||
                             error.code == ErrorCode::kShape || error.code == ErrorCode::kUnsupported ||
                             error.code == ErrorCode::kNonFinite;
    const bool is_named = std::string_view(error.what()).find(config.quantisation) != std::string_view::npos;
    if (!about_model || !config.is_quantised() || is_named) throw;
    throw Error(error.code, cat(error.what(), " (the model is quantised with ", config.quantisation, ")"));
  }
}

}  // namespace coppice::families
