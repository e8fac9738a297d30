#pragma once

#include <span>
#include <string>
#include <vector>

#include "coppice/convert/map.h"
#include "coppice/methods/new_router.h"
#include "coppice/output/tensors.h"

namespace coppice::convert {

/// Every tensor of the converted model, with the source of its bytes. All arguments must outlive the result. `rows` are
/// the router rows, if the plan reads them from a file.
///
/// Memory   for computed pieces: that of matrices_piece; for a router: its rows in fp32.
/// Throws   Error{kUnsupported} naming a tensor whose format does not allow computing (fp8), or parts of one tensor
///          with different dtypes.
std::vector<output::OutputTensor> converted_tensors(std::span<const families::Model> parents,
                                                    const ConversionPlan& plan, const Mapping& mapping,
                                                    const methods::RouterRows* rows);

/// The same for a dense model whose feed-forward layers are averages of experts.
std::vector<output::OutputTensor> averaged_tensors(const families::Model& moe, const Mapping& mapping);

/// A description of a tensor of the converted model: "slice 3 of 4 of 'model.layers.0.mlp.gate_proj.weight', times
/// 1.587".
std::string source_text(const MappedTensor& tensor, const ConversionPlan& plan);

}  // namespace coppice::convert
