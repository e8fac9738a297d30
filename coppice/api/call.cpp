#include "coppice/api/call.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <mutex>

#include "coppice/api/convert.h"
#include "coppice/api/cost.h"
#include "coppice/api/error_of.h"
#include "coppice/api/expand.h"
#include "coppice/api/inspect.h"
#include "coppice/api/verify.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/options/options.h"

namespace coppice::api {
namespace {

using Arguments = std::span<const std::string_view>;

const Engine kNoEngine;

/// A command: its options, and what it does with a command line.
struct Row {
  std::string_view name, summary;
  std::vector<OptionInfo> (*options)();
  Outcome (*run)(Arguments args);
};

template <class Options>
std::vector<OptionInfo> infos() {
  Options defaults;
  std::vector<OptionInfo> out;
  for (const OptionSpec& spec : option_specs(defaults)) {
    if (spec.name == "json") continue;
    out.push_back({.name = spec.name,
                   .help = spec.help,
                   .type = spec.type,
                   .positional = spec.positional,
                   .is_list = spec.is_list,
                   .optional = spec.optional,
                   .fallback = spec.positional ? Json() : spec.write()});
  }
  return out;
}

/// The options of `expand` that a plan depends on.
std::vector<OptionInfo> plan_infos() {
  constexpr std::array<std::string_view, 6> kOfWriting = {"OUT",  "dry-run", "resume",
                                                          "part", "threads", "max-shard-bytes"};
  std::vector<OptionInfo> options = infos<grow::ExpandOptions>();
  std::erase_if(options, [&](const OptionInfo& option) {
    return std::ranges::find(kOfWriting, option.name) != kOfWriting.end();
  });
  return options;
}

constexpr Row kRows[] = {
    {"expand", kExpandSummary, infos<grow::ExpandOptions>,
     [](Arguments args) { return expand(parse<grow::ExpandOptions>("expand", kExpandSummary, args)); }},
    {"convert", kConvertSummary, infos<convert::ConvertOptions>,
     [](Arguments args) { return convert(parse<convert::ConvertOptions>("convert", kConvertSummary, args)); }},
    {"verify", kVerifySummary, infos<VerifyOptions>,
     [](Arguments args) { return verify(parse<VerifyOptions>("verify", kVerifySummary, args), kNoEngine); }},
    {"inspect", kInspectSummary, infos<InspectOptions>,
     [](Arguments args) { return inspect(parse<InspectOptions>("inspect", kInspectSummary, args)); }},
    {"cost", kCostSummary, infos<cost::CostOptions>,
     [](Arguments args) { return cost(parse<cost::CostOptions>("plan", kCostSummary, args), kNoEngine); }},
    {"plan", "make the plan of an expansion, as text that expand takes", plan_infos,
     [](Arguments args) {
       std::vector<std::string_view> with_out(args.begin(), args.end());
       with_out.emplace_back("OUT");  // plan_of writes nothing
       return Outcome{.json = Json(), .text = plan_of(parse<grow::ExpandOptions>("expand", kExpandSummary, with_out))};
     }},
};

const Row& row_of(std::string_view command) {
  const auto* row = std::ranges::find(kRows, command, &Row::name);
  if (row != std::end(kRows)) return *row;
  std::vector<std::string> names;
  for (const Row& known : kRows) names.emplace_back(known.name);
  throw Error(ErrorCode::kUsage, cat("'", command, "': is not a command", suggestion(command, names)));
}

std::string key_of(const OptionInfo& option) {
  std::string key = option.name;
  std::ranges::transform(key, key.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return key;
}

/// The command line that says the same as `settings`.
class CommandLine {
 public:
  CommandLine(const Row& row, const Settings& settings, char separator) : options_(row.options()) {
    options_.push_back({.name = "config", .type = "path"});
    for (const auto& [name, value] : settings) check_name(row.name, name, separator);
    std::vector<std::string> operands;
    for (const OptionInfo& option : options_) {
      const auto setting = settings.find(spelled(option, separator));
      if (setting != settings.end()) add(option, setting->first, setting->second, operands);
    }
    texts_.emplace_back("--");
    texts_.insert(texts_.end(), operands.begin(), operands.end());
  }

  std::vector<std::string_view> arguments() const { return {texts_.begin(), texts_.end()}; }

 private:
  static std::string spelled(const OptionInfo& option, char separator) {
    std::string key = key_of(option);
    std::ranges::replace(key, '-', separator);
    return key;
  }

  void check_name(std::string_view command, const std::string& name, char separator) const {
    std::vector<std::string> names;
    for (const OptionInfo& option : options_) names.push_back(spelled(option, separator));
    if (std::ranges::find(names, name) == names.end()) {
      throw Error(ErrorCode::kUsage, cat("'", name, "': is not an option of '", command, "'", suggestion(name, names)));
    }
  }

  void add(const OptionInfo& option, const std::string& name, const Value& value, std::vector<std::string>& operands) {
    if (value.is_flag() != (option.type == "flag")) {
      throw Error(ErrorCode::kUsage, cat(name, ": found ", value.is_flag() ? "true or false" : "a value", "; wanted ",
                                         option.type == "flag" ? "true or false" : cat("a value (", option.type, ")")));
    }
    if (option.type == "flag") {
      if (!value.texts().empty()) texts_.push_back("--" + option.name);
      return;
    }
    if (value.texts().size() != 1 && !option.is_list)
      throw Error(ErrorCode::kUsage,
                  cat(name, ": found a list of ", value.texts().size(), " values; wanted one value"));
    for (const std::string& text : value.texts()) {
      if (text.empty() && !option.positional)
        throw Error(ErrorCode::kUsage, cat(name, ": found an empty text; wanted a value (", option.type, ")"));
      if (text.find('\0') != std::string::npos)
        throw Error(ErrorCode::kUsage, cat(name, ": found a text with a NUL character; wanted one without"));
      if (option.positional) {
        operands.push_back(text);
      } else {
        texts_.push_back(cat("--", option.name, "=", text));
      }
    }
  }

  std::vector<OptionInfo> options_;
  std::vector<std::string> texts_;
};

std::mutex& one_at_a_time() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

Value::Value(bool flag) : is_flag_(true) {
  if (flag) texts_.emplace_back("true");
}

Value::Value(double number) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, number).ptr;
  texts_.emplace_back(text, end);
}

std::vector<std::string_view> callable_commands() {
  std::vector<std::string_view> names;
  for (const Row& row : kRows) names.push_back(row.name);
  return names;
}

std::string_view summary_of(std::string_view command) { return row_of(command).summary; }

std::vector<OptionInfo> options_of(std::string_view command) { return row_of(command).options(); }

Outcome call(std::string_view command, const Settings& settings, char separator) {
  const Row& row = row_of(command);
  const CommandLine line(row, settings, separator);
  const std::lock_guard lock(one_at_a_time());
  try {
    return row.run(line.arguments());
  } catch (...) {
    throw error_of(std::current_exception());
  }
}

}  // namespace coppice::api
