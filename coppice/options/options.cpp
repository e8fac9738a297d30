#include "coppice/options/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/options/options_detail.h"

namespace coppice {
namespace {

[[noreturn]] void wrong_usage(std::string_view command, const std::string& problem) {
  throw Error(ErrorCode::kUsage, cat(problem, " (see `coppice ", command, " --help`)"));
}

CLI::Option* declare(CLI::App& app, const OptionSpec& spec) {
  if (spec.is_flag) return app.add_flag("--" + spec.name)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  CLI::Option* option = app.add_option(cat(spec.positional ? "" : "--", spec.name));
  if (spec.is_list) option->expected(1, CLI::detail::expected_max_vector_size)->allow_extra_args();
  if (spec.is_list && !spec.positional) option->delimiter(',');
  if (spec.positional && !spec.optional) option->required();
  return option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

// Assigns the given texts to operands: a list takes all but those that the operands after it need.
std::vector<std::vector<std::string>> texts_of(std::span<const OptionSpec> specs,
                                               const std::vector<const CLI::Option*>& options) {
  std::vector<std::vector<std::string>> texts;
  for (const CLI::Option* option : options) texts.push_back(option->results());
  for (size_t list = 0; list < specs.size(); ++list) {
    if (!specs[list].positional || !specs[list].is_list) continue;
    for (size_t i = specs.size() - 1; i > list; --i) {
      if (!specs[i].positional || !texts[i].empty() || texts[list].size() < 2) continue;
      texts[i].push_back(std::move(texts[list].back()));
      texts[list].pop_back();
    }
  }
  return texts;
}

// Texts that CLI11 could not assign. An unknown option is reported before an extra operand, which may be that option's
// value.
void refuse_extras(std::string_view command, std::span<const OptionSpec> specs, std::vector<std::string> extras) {
  std::erase(extras, "--");  // "--" only marks the end of the options
  if (extras.empty()) return;
  const auto unknown =
      std::find_if(extras.begin(), extras.end(), [](const auto& extra) { return extra.starts_with('-'); });
  if (unknown == extras.end()) {
    wrong_usage(command, cat("'", extras.front(), "': one operand too many for '", command, "'"));
  }
  std::vector<std::string> names = {"--config", "--quiet", "--help"};
  for (const auto& spec : specs) {
    if (!spec.positional) names.push_back("--" + spec.name);
  }
  const std::string name = unknown->substr(0, unknown->find('='));
  wrong_usage(command, cat("'", name, "': is not an option of '", command, "'", suggestion(name, names)));
}

}  // namespace

Given detail::parse_options(std::string_view command, std::string_view summary, std::span<OptionSpec> specs,
                            std::span<const std::string_view> args) {
  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  const CLI::Option* help = app.add_flag("--help");
  const CLI::Option* config = app.add_option("--config");
  if (!has_quiet(specs)) app.add_flag("--quiet");  // main has handled it already
  std::vector<const CLI::Option*> options;
  for (const auto& spec : specs) options.push_back(declare(app, spec));

  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ArgumentMismatch& e) {
    const std::string message = e.what();
    wrong_usage(command, cat(message.substr(0, message.find(':')), ": wanted one value"));
  } catch (const CLI::ParseError& e) {
    const bool is_missing_operand = e.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError);
    if (!is_missing_operand) wrong_usage(command, e.what());  // a configuration file may give it; checked below
  }
  if (help->count() > 0) {
    std::cout << help_text(command, summary, specs);
    throw HelpShown();
  }
  refuse_extras(command, specs, app.remaining());

  Given given;
  std::vector<Json> defaults;
  for (const OptionSpec& spec : specs) defaults.push_back(spec.write());
  std::vector<const OptionSpec*> set;
  if (config->count() > 0) {
    const std::string& path = config->results().back();
    set = assign_settings(specs, read_toml(path), path, given);
  }
  std::vector<std::string> missing;
  const auto texts_of_options = texts_of(specs, options);
  for (size_t i = 0; i < specs.size(); ++i) {
    OptionSpec& spec = specs[i];
    const auto& texts = texts_of_options[i];
    const std::string subject = cat(spec.positional ? "" : "--", spec.name);
    if (!texts.empty()) {
      if (texts.size() > 1 && !spec.is_list)
        wrong_usage(command, cat(subject, ": given ", texts.size(), " times; wanted once"));
      assign(spec, texts, subject);
      const bool resets = given.has(spec.name) && spec.write() == defaults[i];  // the value in the file
      resets ? given.remove(spec.name) : given.add_flag(spec.name);
    } else if (spec.positional && !spec.optional && std::find(set.begin(), set.end(), &spec) == set.end()) {
      missing.push_back(spec.name);
    }
  }
  if (!missing.empty())
    wrong_usage(command, cat(join(missing, " and "), ": missing; '", command, "' requires ",
                             missing.size() > 1 ? "them" : "it"));
  return given;
}

void refuse_option(std::string_view option, std::string_view reason, std::string_view dashes) {
  throw Error(ErrorCode::kUsage, cat(dashes, option, ": it has no effect here; ", reason, " (leave it out)"));
}

void refuse_without_effect(const Given& given, std::initializer_list<WithoutEffect> rules, std::string_view dashes) {
  for (const WithoutEffect& rule : rules) {
    if (!rule.when) continue;
    for (const std::string_view option : rule.options) {
      if (rule.flags_only ? given.has_flag(option) : given.has(option)) refuse_option(option, rule.reason, dashes);
    }
  }
}

}  // namespace coppice
