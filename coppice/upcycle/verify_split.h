#pragma once

#include "coppice/upcycle/verify.h"

namespace coppice::upcycle {

/// How many parts of an expert of `before` the experts of `after` are, by their width and number; 1 if they are none.
int64_t split_parts(const families::ModelConfig& before, const families::ModelConfig& after);

/// Parts of an expert have nothing of a whole one to be recognised by: splits `before` into `result.split` again, in
/// either order, and compares byte for byte.
///
/// Memory   one tensor per thread.
void verify_split(const families::Model& before, const families::Model& after, size_t threads, VerifyResult& result);

}  // namespace coppice::upcycle
