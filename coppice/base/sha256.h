#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace coppice {

/// The SHA-256 digest of all added bytes, as 64 lower-case hex digits.
///
/// Source   FIPS 180-4, through libcrypto.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void add(std::span<const std::byte> bytes);
  void add(std::string_view text);
  std::string hex();  // no bytes can be added afterwards

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Digest of a file's bytes. Throws Error{kNotFound, kIo}.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace coppice
