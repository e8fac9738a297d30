#include <algorithm>
#include <iostream>
#include <string_view>
#include <vector>

#include "coppice/base/interrupt.h"
#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "coppice/cli/dispatch.h"
#include "coppice/cli/shown_output.h"

int main(int argc, char** argv) {
  using namespace coppice;
  const std::vector<std::string_view> args(argv + std::min(argc, 1), argv + argc);
  const bool quiet = std::find(args.begin(), args.end(), "--quiet") != args.end();
  catch_interrupts();
  set_log_sink(stderr_sink(quiet));
  enable_progress(!quiet);
  const cli::ShownOutput output(std::cout);
  return cli::finish_output(cli::run_command(args));
}
