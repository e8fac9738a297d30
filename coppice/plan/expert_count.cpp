#include <charconv>

#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/plan/plan.h"

namespace coppice::plan {
namespace {

constexpr size_t kMaxDigits = 9;  // times families::kMaxExperts stays below 2^63

/// numerator / denominator, times the current number of experts if `is_factor`.
struct ParsedCount {
  int64_t numerator = 0, denominator = 1;
  bool is_factor = false;
};

ParsedCount parse_count(std::string_view text) {
  const auto fail = [&](std::string_view found) {
    throw Error(ErrorCode::kUsage, cat("experts: '", text, "' ", found, "; write 2x, 1.5x or 48"));
  };
  ParsedCount count;
  std::string digits(text);
  if (digits.ends_with('x')) {
    count.is_factor = true;
    digits.pop_back();
  }
  if (const size_t point = digits.find('.'); point != std::string::npos) {
    const size_t decimals = digits.size() - point - 1;
    if (!count.is_factor || point == 0 || decimals == 0 || decimals > 6) fail("is not a number of experts");
    digits.erase(point, 1);
    for (size_t i = 0; i < decimals; ++i) count.denominator *= 10;
  }
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) fail("is not a number of experts");
  if (digits.size() > kMaxDigits) fail("is too large");
  std::from_chars(digits.data(), digits.data() + digits.size(), count.numerator);
  return count;
}

}  // namespace

ExpertCount ExpertCount::from_text(std::string_view text) {
  (void)parse_count(text);
  return {std::string(text)};
}

int64_t ExpertCount::resolve(int64_t experts) const {
  const ParsedCount count = parse_count(text);
  if (experts > families::kMaxExperts) {
    throw Error(ErrorCode::kUnsupported,
                cat("the model has ", experts, " experts; wanted at most ", families::kMaxExperts));
  }
  int64_t wanted = count.numerator;
  if (count.is_factor) {
    wanted *= experts;
    if (wanted % count.denominator != 0) {
      throw Error(ErrorCode::kUsage,
                  cat("experts: ", text, " of ", experts, " is not a whole number (give the number itself)"));
    }
    wanted /= count.denominator;
  }
  if (wanted <= experts) {
    throw Error(ErrorCode::kUsage,
                cat("experts: ", text, " makes ", wanted, " of ", experts, "; wanted more experts than before"));
  }
  if (wanted > families::kMaxExperts) {
    throw Error(ErrorCode::kUsage, cat("experts: ", text, " of ", experts, " is more than ", families::kMaxExperts,
                                       " experts in one layer"));
  }
  return wanted;
}

}  // namespace coppice::plan
