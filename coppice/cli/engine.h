#pragma once

#include "coppice/api/engine.h"

namespace coppice::cli {

/// The engine of this build: engine_full.cpp has one on libtorch; that of engine_core.cpp runs nothing.
const api::Engine& engine();

}  // namespace coppice::cli
