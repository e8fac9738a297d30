#include "coppice/api/convert.h"
#include "coppice/cli/command.h"
#include "coppice/cli/print.h"
#include "coppice/cli/voice.h"

namespace coppice::cli {
namespace {

int run(std::span<const std::string_view> args) {
  const auto o = parse<convert::ConvertOptions>("convert", api::kConvertSummary, args);
  speak_as(o.part);
  return print(api::convert(o), o.json);
}

}  // namespace

extern const Command kConvert;
const Command kConvert{"convert", api::kConvertSummary, run};

}  // namespace coppice::cli
