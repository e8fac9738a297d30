#pragma once

#include <cstdint>

#include "coppice/methods/params.h"

namespace coppice::methods {

/// Whether an expert method with these parameters leaves the parent's values unchanged: `drop_units:ratio=0`,
/// `scaled_copy:factor=1`, for experts of `width` units and `model_dim` inputs. It is applied to two thin test experts,
/// one with all units and one with all inputs, that have values of all magnitudes.
///
/// Memory   a few times 16 (width + model_dim) f32.
/// Throws   Error{kUsage}: no such method or parameter.
bool changes_nothing(const MethodChoice& expert_method, int64_t width, int64_t model_dim);

}  // namespace coppice::methods
