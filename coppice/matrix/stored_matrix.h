#pragma once

// Matrices of tensors in files.

#include <vector>

#include "coppice/io/checkpoint.h"
#include "coppice/matrix/matrix_bytes.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/models/expert_layout.h"

namespace coppice::matrix {

/// The place of an original expert's values: a tensor, or a slice of a stacked one.
struct StoredExpert {
  io::Checkpoint::Entry entry;
  models::ExpertSlice slice;
};

/// A stored matrix; read from the file by rows if it is stored by rows, otherwise held in memory.
///
/// Throws   Error{kNonFinite} from its `read`, naming the tensor, if a value is NaN or infinite.
MatrixRows stored_matrix(const StoredExpert& stored, const models::ExpertMatrix& place);

/// Stored tensors read as matrices by one computation; their pages are released when it ends.
class SourceMatrices {
 public:
  SourceMatrices() = default;
  ~SourceMatrices();
  SourceMatrices(const SourceMatrices&) = delete;
  SourceMatrices& operator=(const SourceMatrices&) = delete;

  /// [rows, cols]; a vector is a matrix of one column.
  MatrixBytes read(const io::Checkpoint::Entry& entry);
  /// Its pages are also released at the end.
  void hold(const io::Checkpoint::Entry& entry) { read_.push_back(entry); }

 private:
  std::vector<io::Checkpoint::Entry> read_;
};

}  // namespace coppice::matrix
