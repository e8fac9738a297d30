// Normals a second of the generator that expansions draw from, on one thread. Usage: normals SECONDS

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "coppice/base/rng.h"

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 1.0;
  const coppice::Rng rng({.seed = 1});
  std::vector<float> out(1 << 20);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  uint64_t made = 0;
  for (; elapsed() < seconds; made += out.size()) rng.fill_normal(made, out.data(), out.size());
  std::cout << static_cast<double>(made) / elapsed() << "\n";
}
