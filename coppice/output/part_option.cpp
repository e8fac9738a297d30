#include "coppice/output/part_option.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/launch/launch.h"

namespace coppice::output {

PartOption PartOption::from_text(std::string_view text) {
  if (text != "auto") return {.part = io::Part::from_text(text)};
  const launch::Launch launch = launch::read_launch(launch::process_environment());
  if (launch.size > io::Part::kMost) {
    throw Error(ErrorCode::kUsage, cat(launch.launcher, " started ", launch.size, " processes; wanted at most ",
                                       io::Part::kMost, " parts"));
  }
  return {.part = {.index = static_cast<uint32_t>(launch.rank + 1), .count = static_cast<uint32_t>(launch.size)},
          .is_auto = true};
}

}  // namespace coppice::output
