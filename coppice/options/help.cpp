#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/options/options_detail.h"

namespace coppice::detail {
namespace {

struct Row {
  std::string left, right;
};

std::string placeholder(const OptionSpec& spec) {
  if (spec.is_flag) return "";
  const std::string one = spec.type == "integer"  ? "N"
                          : spec.type == "number" ? "X"
                          : spec.type == "path"   ? "PATH"
                          : spec.type == "json"   ? "JSON"
                                                  : "TEXT";
  return cat(" ", one, spec.is_list ? " ..." : "");
}

std::string default_text(const OptionSpec& spec) {
  const Json value = spec.write();
  if (value.is_null()) return "";
  if (value.is_array()) {
    std::vector<std::string> items;
    for (const Json& item : value.items()) items.push_back(item.is_string() ? item.as_string() : item.dump());
    return items.empty() ? "" : cat(" [", join(items, ","), "]");
  }
  const std::string text = value.is_string() ? value.as_string() : value.dump();
  return text.empty() ? "" : cat(" [", text, "]");
}

std::string usage(const OptionSpec& spec) {
  const std::string name = cat(spec.name, spec.is_list ? " ..." : "");
  return spec.optional ? cat(" [", name, "]") : cat(" ", name);
}

void append_rows(std::string& out, std::string_view title, const std::vector<Row>& rows, size_t width) {
  if (rows.empty()) return;
  out += cat("\n", title, "\n");
  for (const Row& row : rows)
    out += cat("  ", row.left, std::string(width - row.left.size() + 2, ' '), row.right, "\n");
}

}  // namespace

bool has_quiet(std::span<const OptionSpec> specs) {
  return std::any_of(specs.begin(), specs.end(), [](const OptionSpec& spec) { return spec.name == "quiet"; });
}

std::string help_text(std::string_view command, std::string_view summary, std::span<const OptionSpec> specs) {
  std::vector<Row> operands, options;
  std::vector<Row> common = {
      {"--config FILE.toml", "read options from this file; flags on the command line override it"}};
  if (!has_quiet(specs))
    common.push_back({"--quiet", "print no progress and no log lines on stderr, only warnings and errors"});
  common.push_back({"--help", "print this and do nothing"});
  std::string out = cat("coppice ", command, ": ", summary, "\n\nusage: coppice ", command, " [options]");
  for (const auto& spec : specs) {
    if (spec.positional) {
      out += usage(spec);
      operands.push_back({spec.name, spec.help});
    } else {
      options.push_back({cat("--", spec.name, placeholder(spec)), cat(spec.help, default_text(spec))});
    }
  }
  out += "\n";
  size_t width = 0;
  for (const std::vector<Row>* rows : {&operands, &options, &common}) {
    for (const Row& row : *rows) width = std::max(width, row.left.size());
  }
  append_rows(out, "operands", operands, width);
  append_rows(out, "options [default]", options, width);
  append_rows(out, "common options", common, width);
  return out;
}

}  // namespace coppice::detail
