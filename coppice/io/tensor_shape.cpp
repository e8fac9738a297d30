#include "coppice/io/tensor_shape.h"

#include "coppice/base/check.h"

namespace coppice::io {

size_t TensorShape::checked(size_t i) const {
  COPPICE_CHECK(i < size_, "dimension ", i, " of ", size_);
  return i;
}

}  // namespace coppice::io
