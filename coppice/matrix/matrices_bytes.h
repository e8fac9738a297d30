#pragma once

// Bytes of a tensor made from matrices.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "coppice/io/dtype.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/models/expert_layout.h"

namespace coppice::matrix {

/// Fills `out` with bytes from `offset` on; called from any thread, each byte asked for once.
using BytesFill = std::function<void(uint64_t offset, std::span<std::byte> out)>;

/// The bytes of a tensor with the matrices that `prepare` returns, each at its place. `prepare` is called when the
/// first bytes are requested.
///
/// Memory   a few times 256 KiB fp32 if the matrices are stored by rows and can be computed by rows; otherwise what
///          `prepare` holds.
BytesFill matrices_fill(std::vector<models::ExpertMatrix> places, io::Dtype dtype,
                        std::function<std::vector<MatrixRows>()> prepare);
/// The number of these bytes.
uint64_t matrices_bytes(std::span<const models::ExpertMatrix> places, io::Dtype dtype);
/// Whether any range of them can be computed alone, if rows of the matrices can be computed in any order (`by_rows`).
bool matrices_cuttable(std::span<const models::ExpertMatrix> places, bool by_rows);

}  // namespace coppice::matrix
