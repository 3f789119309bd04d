// SPDX-License-Identifier: Apache-2.0
#include "quantizer/tile.h"

#include <algorithm>
#include <cstring>

namespace weft {

using kernels::kLanes;

ByteTileBuffer::ByteTileBuffer(MatrixView<const int8_t> rows) {
  resize(rows.rows, rows.cols);
  for (size_t i = 0; i < rows.rows; ++i) {
    set_row(i, rows.row(i));
  }
}

void ByteTileBuffer::resize(size_t n, size_t dim) {
  n_rows_ = n;
  groups_ = std::max<size_t>(1, (n + kLanes - 1) / kLanes);
  dim_ = dim;
  const size_t lanes = groups_ * kLanes;
  if (data_.size() < lanes * dim || sums_.size() < lanes) {
    data_.resize(lanes * dim);
    sums_.resize(lanes);
  } else {
    std::fill_n(data_.data(), lanes * dim, int8_t{0});
    std::fill_n(sums_.data(), lanes, 0);
  }
}

void ByteTileBuffer::set_row(size_t lane, const int8_t* row) {
  int32_t sum = 0;
  for (size_t d = 0; d < dim_; ++d) {
    sum += row[d];
  }
  set_row(lane, row, sum);
}

void ByteTileBuffer::set_row(size_t lane, const int8_t* row, int32_t sum) {
  int8_t* out = data_.data() + (lane / kLanes * dim_ * kLanes) + lane % kLanes * 4;
  for (size_t d = 0; d < dim_; d += 4, out += 4 * kLanes) {
    std::memcpy(out, row + d, 4);
  }
  sums_[lane] = sum;
}

FloatTileBuffer::FloatTileBuffer(MatrixView<const float> rows)
    : data_(std::max<size_t>(1, (rows.rows + kLanes - 1) / kLanes) * kLanes * rows.cols),
      groups_(std::max<size_t>(1, (rows.rows + kLanes - 1) / kLanes)),
      dim_(rows.cols) {
  for (size_t i = 0; i < rows.rows; ++i) {
    float* out = data_.data() + i / kLanes * dim_ * kLanes + i % kLanes;
    for (size_t d = 0; d < dim_; ++d) {
      out[d * kLanes] = rows.row(i)[d];
    }
  }
}

}  // namespace weft
