#pragma once

// What other programs call: each function does what the command of the command line with its name does, with the same
// options, and returns what that prints. This header needs the standard library alone.

#include <concepts>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::api {

/// The value of an option: a flag, a number, a text or a path, or a list of them.
class Value {
 public:
  Value(bool flag);
  Value(double number);
  template <std::integral T>
    requires(!std::same_as<T, bool> && !std::same_as<T, char>)
  Value(T number) : texts_{std::to_string(number)} {}
  Value(const char* text) : texts_{text} {}
  Value(std::string text) : texts_{std::move(text)} {}
  Value(std::string_view text) : texts_{std::string(text)} {}
  Value(const std::filesystem::path& path) : texts_{path.string()} {}
  Value(std::vector<std::string> list) : texts_(std::move(list)) {}

  bool is_flag() const { return is_flag_; }
  const std::vector<std::string>& texts() const { return texts_; }

 private:
  std::vector<std::string> texts_;  ///< of a flag: one if it is set
  bool is_flag_ = false;
};

/// Options by the names that the command line has for them, without dashes in front: {{"experts", "1.5x"}, {"seed", 3}}.
/// `coppice COMMAND --help` lists them; "config" names a TOML file of them.
using Settings = std::map<std::string, Value, std::less<>>;

/// What a command says.
struct Result {
  bool ok = true;    ///< false: the check that was asked for did not hold
  std::string text;  ///< for a reader
  std::string json;  ///< the object that the command line prints with --json
};

/// How a model was expanded.
struct Expanded : Result {
  int64_t experts_before = 0, experts_after = 0;  ///< per layer
  std::optional<bool> exact;  ///< whether the new model computes the same function; empty if that cannot be decided
  std::string exactness;      ///< the reason, as a sentence
};

/// Adds experts to every MoE layer of `model` and writes the result to `out`.
///
/// Memory   constant: it does not grow with the model.
/// Threads  one call of this header at a time does its work; others wait.
/// Throws   Error; nothing is left under the name `out`.
Expanded expand(const std::filesystem::path& model, const std::filesystem::path& out, const Settings& settings = {});

/// The plan of such an expansion as TOML, below comments that say what it would do. Written to a file, and edited if you
/// like, it is the option "plan" of expand().
std::string plan(const std::filesystem::path& model, const Settings& settings = {});

/// Makes a Mixture of Experts of a dense model, or of several, and writes it to `out`.
///
/// Memory, Threads, Throws   as expand.
Result convert(const std::vector<std::filesystem::path>& models, const std::filesystem::path& out,
               const Settings& settings = {});

/// Checks every tensor of `after` against the model, or the models, that it was made from. `ok` says whether they fit.
///
/// Threads, Throws   as expand.
Result verify(const std::vector<std::filesystem::path>& before, const std::filesystem::path& after,
              const Settings& settings = {});

/// What a model is. With the option "infer" the JSON says what was inferred, and the fields are empty.
struct Inspected : Result {
  std::string family;
  int64_t layers = 0, experts = 0;  ///< experts per layer; 0 for a dense model
  int64_t parameters = 0, active_parameters = 0;
};

/// Describes `model`: family, experts, routing, parameters, bytes, lineage.
///
/// Memory   headers only; with "experts" one matrix per thread.
/// Threads, Throws   as expand.
Inspected inspect(const std::filesystem::path& model, const Settings& settings = {});

/// Estimates what an expansion of `model` would cost and gain: the command `plan`.
///
/// Memory   headers only.
/// Threads, Throws   as expand.
Result cost(const std::filesystem::path& model, const Settings& settings = {});

}  // namespace coppice::api
