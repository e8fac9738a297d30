#include <arpa/inet.h>
#include <link.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/dist/address_detail.h"

namespace coppice::dist {
namespace {

std::string numeric(const sockaddr* address, socklen_t length) {
  std::array<char, NI_MAXHOST> text{};
  if (::getnameinfo(address, length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) return "";
  return text.data();
}

/// The bytes of the note that the linker writes into what holds this function, as hexadecimal digits; "" without one.
std::string build_identity() {
  struct Search {
    uintptr_t here;
    std::string found;
  } search{reinterpret_cast<uintptr_t>(&build_identity), ""};
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& wanted = *static_cast<Search*>(data);
        const std::span<const ElfW(Phdr)> parts(info->dlpi_phdr, info->dlpi_phnum);
        const auto begin = [&](const ElfW(Phdr) & part) { return info->dlpi_addr + part.p_vaddr; };
        const bool holds = std::ranges::any_of(parts, [&](const ElfW(Phdr) & part) {
          return part.p_type == PT_LOAD && wanted.here >= begin(part) && wanted.here < begin(part) + part.p_memsz;
        });
        if (!holds) return 0;
        for (const auto& part : parts) {
          if (part.p_type != PT_NOTE) continue;
          uintptr_t at = begin(part);
          const uintptr_t end = at + part.p_memsz;
          while (at + sizeof(ElfW(Nhdr)) <= end) {
            const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
            const auto padded = [](uintptr_t bytes) { return (bytes + 3) / 4 * 4; };
            const uintptr_t value = at + sizeof(*note) + padded(note->n_namesz);
            if (note->n_type == NT_GNU_BUILD_ID) {
              for (uintptr_t i = 0; i < note->n_descsz; ++i) {
                constexpr std::string_view kDigits = "0123456789abcdef";
                const auto byte = *reinterpret_cast<const unsigned char*>(value + i);
                wanted.found += {kDigits[byte / 16], kDigits[byte % 16]};
              }
              return 1;
            }
            at = value + padded(note->n_descsz);
          }
        }
        return 1;
      },
      &search);
  return search.found;
}

}  // namespace

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "?";
  return name.data();
}

std::string address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), "1", &hints, &found); error != 0) {
    throw Error(ErrorCode::kUsage, cat("'", shown(host), "', the host of the rendezvous, has no address: ",
                                       ::gai_strerror(error), "; set MASTER_ADDR to the host of rank 0"));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, ::freeaddrinfo);
  int reason = 0;
  for (const addrinfo* a = addresses.get(); a != nullptr; a = a->ai_next) {
    // Connecting a datagram socket sends nothing; it chooses the interface.
    const Descriptor socket(::socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    if (socket && ::connect(socket.get(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&own), &length) == 0) {
      return numeric(reinterpret_cast<const sockaddr*>(&own), length);
    }
    reason = errno;
  }
  throw Error(ErrorCode::kIo,
              cat("there is no way to '", shown(host), "', the host of the rendezvous: ", std::strerror(reason)));
}

bool is_loopback(const std::string& address) { return address.starts_with("127.") || address == "::1"; }

std::string program_identity() { return cat(version(), " ", build_identity()); }

}  // namespace coppice::dist
