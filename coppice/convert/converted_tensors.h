#pragma once

#include <span>
#include <string>
#include <vector>

#include "coppice/convert/map.h"
#include "coppice/methods/new_router.h"
#include "coppice/output/tensors.h"

namespace coppice::convert {

/// Every tensor of the converted model with where its bytes come from. All arguments outlive the result. `rows` are
/// those of the plan's router, if they come from a file.
///
/// Memory   of computed pieces: matrices_piece; of a router its rows in fp32.
/// Throws   Error{kUnsupported} naming a tensor whose values cannot be computed on (fp8), or parts of one tensor of
///          several dtypes.
std::vector<output::OutputTensor> converted_tensors(std::span<const families::Model> parents,
                                                    const ConversionPlan& plan, const Mapping& mapping,
                                                    const methods::RouterRows* rows);

/// The same of a dense model whose feed-forward layers are averages of experts.
std::vector<output::OutputTensor> averaged_tensors(const families::Model& moe, const Mapping& mapping);

/// What a tensor of the converted model is, for the account: "slice 3 of 4 of 'model.layers.0.mlp.gate_proj.weight',
/// times 1.587".
std::string account_of(const MappedTensor& tensor, const ConversionPlan& plan);

}  // namespace coppice::convert
