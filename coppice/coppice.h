#pragma once

// The header of coppice for programs in C++: find_package(coppice), link coppice::coppice, include this.
//
// What these headers declare outside `detail` is stable: within one minor version (0.2.x) a program need not be compiled
// again, and a later minor version says in CHANGELOG.md what it changes. No other header of coppice is installed.

#include "coppice/api/api.h"         // expand, plan, convert, verify, inspect, cost
#include "coppice/base/error.h"      // what they throw
#include "coppice/base/interrupt.h"  // how to stop them
#include "coppice/base/log.h"        // where their warnings go
#include "coppice/base/progress.h"   // how far they are
#include "coppice/base/version.h"
