// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "base/views.h"
#include "kernels/kernels.h"

namespace weft {

/// Owns a kernels::ByteTile: int8 rows as lanes, padded with zero lanes to a multiple of 16.
class ByteTileBuffer {
 public:
  ByteTileBuffer() = default;
  /// rows: n*dim, copied; dim is a multiple of 32.
  explicit ByteTileBuffer(MatrixView<const int8_t> rows);

  /// Makes room for n rows, all zero; memory is reused where it is large enough.
  void resize(size_t n, size_t dim);
  /// Copies row[dim] into one lane. `sum`: of its elements, where the caller knows it.
  void set_row(size_t lane, const int8_t* row);
  void set_row(size_t lane, const int8_t* row, int32_t sum);

  /// Borrowed from this buffer until it is resized or moved.
  kernels::ByteTile view() const {
    return {data_.data(), sums_.data(), groups_, dim_, groups_ * kernels::kLanes >= n_rows_ + 8};
  }

 private:
  AlignedBuffer<int8_t> data_;
  AlignedBuffer<int32_t> sums_;
  size_t n_rows_ = 0;
  size_t groups_ = 0;
  size_t dim_ = 0;
};

/// Owns a kernels::FloatTile: f32 rows as lanes, padded with zero lanes to a multiple of 16.
class FloatTileBuffer {
 public:
  FloatTileBuffer() = default;
  /// rows: n*dim, copied; any dim.
  explicit FloatTileBuffer(MatrixView<const float> rows);

  /// Borrowed from this buffer.
  kernels::FloatTile view() const { return {data_.data(), groups_, dim_}; }

 private:
  AlignedBuffer<float> data_;
  size_t groups_ = 0;
  size_t dim_ = 0;
};

}  // namespace weft
