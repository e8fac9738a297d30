// The commands of the core, called with their options by name.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <filesystem>

#include "coppice/api/call.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "python/bindings/bindings.h"
#include "python/bindings/text.h"
#include "python/bindings/watched.h"

namespace coppice::python {
namespace {

namespace nb = nanobind;

/// bool before the numbers: it is one of Python's integers too.
api::Value value_of(const std::string& name, nb::handle value) {
  if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
  if (nb::isinstance<nb::int_>(value) || nb::isinstance<nb::float_>(value))
    return nb::cast<std::string>(nb::str(value));
  if (nb::isinstance<nb::str>(value)) return encoded(value);
  if (!nb::isinstance<nb::list>(value)) {
    throw Error(ErrorCode::kUsage, cat(name, ": found a value of type ", nb::cast<std::string>(nb::str(value.type())),
                                       "; wanted text, a path, a number, or a list of them"));
  }
  std::vector<std::string> texts;
  for (const nb::handle item : nb::cast<nb::list>(value)) texts.push_back(encoded(nb::str(item)));
  return texts;
}

/// A dict with text as keys.
using Row = nb::typed<nb::dict, nb::str, nb::object>;

auto call(const std::string& command, const Row& options, const nb::object& on_progress, const nb::object& on_log) {
  api::Settings settings;
  for (const auto& [key, value] : options) {
    const auto name = nb::cast<std::string>(key);
    settings.emplace(name, value_of(name, value));
  }
  api::Outcome outcome;
  run_watched([&] { outcome = api::call(command, settings, '_'); }, on_progress, on_log);
  return std::tuple{outcome.ok, decoded(outcome.json.dump()), decoded(outcome.text)};
}

nb::typed<nb::list, Row> options(const std::string& command) {
  nb::typed<nb::list, Row> out;
  for (const api::OptionInfo& option : api::options_of(command)) {
    Row row;
    row["name"] = option.name;
    row["help"] = option.help;
    row["type"] = option.type;
    row["positional"] = option.positional;
    row["is_list"] = option.is_list;
    row["default"] = option.fallback.dump();
    out.append(row);
  }
  return out;
}

}  // namespace

void bind_commands(nb::module_& module) {
  module.def("commands", &api::callable_commands, "The names of the commands.");
  module.def("summary", &api::summary_of, nb::arg("command"), "What a command does, in one sentence.");
  module.def("options", &options, nb::arg("command"),
             "The options of a command: name, help, type, positional, is_list, and default as JSON.");
  module.def("call", &call, nb::arg("command"), nb::arg("options"), nb::arg("on_progress").none(), nb::arg("on_log"),
             "Does what a command does. Returns whether it is ok, its JSON and its text.");
}

}  // namespace coppice::python
