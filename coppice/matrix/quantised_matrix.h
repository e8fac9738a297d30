#pragma once

// Quantised matrices read as numbers.

#include "coppice/families/quantization.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/models/expert_layout.h"

namespace coppice::matrix {

/// Matrix `index` of a quantised tensor, or the part of it that has the place `place` in the bf16 tensor: gate or up of
/// a fused one. `tensor` must outlive the result.
///
/// Memory   the stored bytes of the rows that are read.
/// Throws   Error{kNonFinite} from its `read`, naming the tensor, if a value is NaN or infinite; Error{kIo}.
/// Source   Fp8Dequantize and convert_moe_packed_tensors of transformers 5.17.0; decompress of compressed-tensors 0.20;
///          NVFP4QTensor of nvidia-modelopt 0.47.
MatrixRows quantised_rows(const families::QuantisedTensor& tensor, int64_t index, const models::ExpertMatrix& place,
                          bool is_transposed);

/// The place of a whole matrix that is a tensor of its own.
models::ExpertMatrix whole_matrix(families::Role role, int64_t rows, int64_t cols);

}  // namespace coppice::matrix
