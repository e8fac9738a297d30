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

/// Bytes that hold the matrices that `prepare` gives, each at its place. `prepare` is called for the first bytes that
/// are asked for.
///
/// Memory   matrices that lie in rows, of rows that can be had a few at a time: 256 KiB fp32 a few times over; else what
///          `prepare` holds.
BytesFill matrices_fill(std::vector<models::ExpertMatrix> places, io::Dtype dtype,
                        std::function<std::vector<MatrixRows>()> prepare);
/// How many these are.
uint64_t matrices_bytes(std::span<const models::ExpertMatrix> places, io::Dtype dtype);
/// Whether any range of them can be made by itself, if rows of the matrices can be had in any order (`by_rows`).
bool matrices_cuttable(std::span<const models::ExpertMatrix> places, bool by_rows);

}  // namespace coppice::matrix
