#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

namespace coppice::methods {

/// A numeric parameter of a method, declared in the method's row.
struct ParamSpec {
  std::string_view key;
  double fallback;
  double lo, hi;  ///< inclusive
  std::string_view help;
  bool is_switch = false;  ///< 0 or 1 only
  bool is_whole = false;   ///< whole numbers only
};

/// The values of one method's parameters: given values and defaults.
class Params {
 public:
  Params() = default;
  /// Throws   Error{kUsage}: a key the method does not have (with the nearest), or a value out of range.
  Params(std::string_view method, std::span<const ParamSpec> specs, const std::map<std::string, double>& given);
  double get(std::string_view key) const;
  const std::map<std::string, double, std::less<>>& values() const { return values_; }

 private:
  std::map<std::string, double, std::less<>> values_;
};

/// A method as the user writes it: `copy_noise` or `copy_noise:lambda=0.02,other=1`.
struct MethodChoice {
  std::string name;
  std::map<std::string, double> given;

  static MethodChoice from_text(std::string_view text);  // Throws Error{kUsage}
  std::string to_text() const;
  bool operator==(const MethodChoice&) const = default;
};

/// The same choice with a value for every parameter, so that it does not depend on its spelling or on the defaults of a
/// later version.
///
/// Throws   Error{kUsage}, as Params does.
MethodChoice complete(const MethodChoice& choice, std::span<const ParamSpec> specs);

}  // namespace coppice::methods
