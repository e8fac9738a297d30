// grow MODEL OUT: writes MODEL with twice the experts to OUT, and checks the result.

#include <coppice/coppice.h>

#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: grow MODEL OUT\n";
    return 2;
  }
  coppice::catch_interrupts();  // Ctrl-C then stops the work cleanly
  coppice::set_log_sink([](coppice::LogLevel, std::string_view message) { std::cerr << message << "\n"; });
  try {
    const auto before = coppice::api::inspect(argv[1]);
    std::cout << before.family << " with " << before.experts << " experts per layer\n";
    const auto grown = coppice::api::expand(argv[1], argv[2], {{"experts", "2x"}, {"seed", 3}});
    std::cout << grown.experts_before << " -> " << grown.experts_after << " experts\n" << grown.exactness << "\n";
    const auto check = coppice::api::verify({argv[1]}, argv[2]);
    std::cout << check.text;
    return check.ok ? 0 : 1;
  } catch (const coppice::Error& error) {
    std::cerr << "grow: " << error.what() << "\n";
    return coppice::exit_status(error.code);
  }
}
