#include "coppice/base/sha256.h"

#include <openssl/evp.h>

#include <array>

#include "coppice/base/check.h"
#include "coppice/base/file.h"

namespace coppice {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();

  State() {
    if (context == nullptr || EVP_DigestInit_ex(context, EVP_sha256(), nullptr) != 1) {
      EVP_MD_CTX_free(context);
      throw Error(ErrorCode::kIo, "libcrypto: cannot compute SHA-256 (check the OpenSSL configuration)");
    }
  }
  ~State() { EVP_MD_CTX_free(context); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::add(std::span<const std::byte> bytes) {
  COPPICE_CHECK(state_ != nullptr, "the digest has ended");
  COPPICE_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

void Sha256::add(std::string_view text) { add(std::as_bytes(std::span(text.data(), text.size()))); }

std::string Sha256::hex() {
  COPPICE_CHECK(state_ != nullptr, "the digest has ended");
  std::array<unsigned char, 32> digest;
  COPPICE_CHECK(EVP_DigestFinal_ex(state_->context, digest.data(), nullptr) == 1);
  state_.reset();
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (const unsigned char byte : digest) {
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

std::string sha256_of_file(const std::filesystem::path& path) {
  Sha256 digest;
  read_pieces(path, [&](std::span<const std::byte> piece) { digest.add(piece); });
  return digest.hex();
}

}  // namespace coppice
