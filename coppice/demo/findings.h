#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/demo/options.h"
#include "coppice/demo/results.h"
#include "coppice/report/html.h"

namespace coppice::demo {

/// The result in one sentence: what was expanded, what that gained, what share of the gap to N experts from scratch it
/// closed and how much training time it saved, with ranges over seeds.
std::string result_sentence(const DemoOptions& options, const std::vector<SeedResult>& seeds);

/// What the sentence leaves out: the jump, gap and gap closure or why it is not given, step times and savings.
std::vector<std::string> findings(const std::vector<SeedResult>& seeds);

/// Mean validation loss of every arm, and of every domain.
report::Table loss_table(const std::vector<SeedResult>& seeds);

/// The domains of the text, by name.
std::vector<std::string> domains_of(const std::vector<SeedResult>& seeds);

/// Mean and range of `value` over seeds.
Spread over_seeds(const std::vector<SeedResult>& seeds, const std::function<double(const SeedResult&)>& value);

}  // namespace coppice::demo
