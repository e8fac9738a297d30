#include "coppice/io/tensor_info.h"

#include <algorithm>
#include <limits>
#include <new>

#include "coppice/base/check.h"

namespace coppice::io {

TensorName::Text* TensorName::make(std::string_view text) {
  if (text.empty()) return nullptr;
  COPPICE_CHECK(text.size() <= std::numeric_limits<uint32_t>::max(), "a name of ", text.size(), " bytes");
  void* block = ::operator new(sizeof(Text) + text.size());
  auto* made = new (block) Text{.owners = 1, .size = static_cast<uint32_t>(text.size())};
  std::ranges::copy(text, reinterpret_cast<char*>(made + 1));
  return made;
}

void TensorName::destroy(Text* text) {
  text->~Text();
  ::operator delete(text);
}

size_t TensorShape::checked(size_t i) const {
  COPPICE_CHECK(i < size_, "dimension ", i, " of ", size_);
  return i;
}

int64_t TensorInfo::elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size == 0) return 0;
    product *= size;
  }
  return product;
}

}  // namespace coppice::io
