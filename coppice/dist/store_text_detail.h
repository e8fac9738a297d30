#pragma once

// Texts in c10d's store.

#include <string>
#include <string_view>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

namespace coppice::dist {

void set_text(c10d::Store& store, const std::string& key, const std::string& text);
/// Waits for the keys, up to the store's time-out.
std::vector<std::string> get_texts(c10d::Store& store, const std::vector<std::string>& keys);
/// Replaces the text if it is `expected`; returns what stands there afterwards.
std::string replace_text(c10d::Store& store, const std::string& key, const std::string& expected,
                         const std::string& text);

/// `text` cut at its first count - 1 line ends.
///
/// Throws   Error{kPeer} if it has fewer.
std::vector<std::string> split_in(std::string_view text, size_t count);

}  // namespace coppice::dist
