#pragma once

#include <string>

namespace coppice::dist {

/// The name of this host.
std::string host_name();

/// The address of this host's network interface by which `host`, a name or an address, is reached.
///
/// Throws   Error{kUsage} if `host` is not known; Error{kIo} if there is no way to it.
std::string address_towards(const std::string& host);

/// Whether only this host reaches the address.
bool is_loopback(const std::string& address);

/// What tells builds of coppice apart: the version, and the identity that the linker gave to the program.
std::string program_identity();

}  // namespace coppice::dist
