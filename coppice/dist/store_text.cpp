#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/store_text_detail.h"

namespace coppice::dist {
namespace {

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }
std::string text_of(const std::vector<uint8_t>& value) { return {value.begin(), value.end()}; }

}  // namespace

void set_text(c10d::Store& store, const std::string& key, const std::string& text) { store.set(key, bytes(text)); }

std::vector<std::string> get_texts(c10d::Store& store, const std::vector<std::string>& keys) {
  std::vector<std::string> texts;
  for (const auto& value : store.multiGet(keys)) texts.push_back(text_of(value));
  return texts;
}

std::string replace_text(c10d::Store& store, const std::string& key, const std::string& expected,
                         const std::string& text) {
  return text_of(store.compareSet(key, bytes(expected), bytes(text)));
}

std::vector<std::string> split_in(std::string_view text, size_t count) {
  std::vector<std::string> fields;
  while (fields.size() + 1 < count) {
    const size_t end = text.find('\n');
    if (end == text.npos) {
      throw Error(ErrorCode::kPeer, cat("the rendezvous holds '", shown(text),
                                        "', which no rank of this version of coppice "
                                        "writes; use a port that no other run uses"));
    }
    fields.emplace_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  fields.emplace_back(text);
  return fields;
}

}  // namespace coppice::dist
