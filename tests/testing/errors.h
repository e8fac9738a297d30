#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <string>

#include "coppice/base/error.h"

namespace coppice::testing {

/// Expects that `act` throws Error{code} whose message holds all of `substrings`. Use within SCOPED_TRACE in loops.
template <class Act>
void expect_error(ErrorCode code, std::initializer_list<const char*> substrings, Act&& act) {
  try {
    std::forward<Act>(act)();
  } catch (const Error& e) {
    EXPECT_EQ(e.code, code) << e.what();
    for (const char* part : substrings) EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr(part));
    return;
  }
  ADD_FAILURE() << "nothing was thrown; wanted an error" << (substrings.size() ? " with: " : "")
                << (substrings.size() ? *substrings.begin() : "");
}

}  // namespace coppice::testing
