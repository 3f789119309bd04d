// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace weft {

/// Row-major matrix, borrowed; `stride` counts elements between row starts.
template <class T>
struct MatrixView {
  T* data = nullptr;
  size_t rows = 0;
  size_t cols = 0;
  size_t stride = 0;

  T* row(size_t i) const noexcept { return data + i * stride; }
  /// Rows [first, first + count).
  MatrixView slice(size_t first, size_t count) const noexcept {
    return {data + first * stride, count, cols, stride};
  }
};

/// Documents (or queries) of several token rows each: document i owns the rows
/// [offsets[i], offsets[i + 1]). `offsets` has docs + 1 entries.
template <class T>
struct RaggedView {
  MatrixView<T> tokens;
  std::span<const uint64_t> offsets;

  size_t size() const noexcept { return offsets.empty() ? 0 : offsets.size() - 1; }
  size_t length(size_t i) const noexcept {
    return static_cast<size_t>(offsets[i + 1] - offsets[i]);
  }
  MatrixView<T> operator[](size_t i) const noexcept {
    return tokens.slice(static_cast<size_t>(offsets[i]), length(i));
  }
};

/// A ragged view whose offsets were checked: they start at 0, never fall and end at tokens.rows.
template <class T>
RaggedView<T> make_ragged(MatrixView<T> tokens, std::span<const uint64_t> offsets) {
  WEFT_REQUIRE(!offsets.empty() && offsets.front() == 0, ErrorCode::invalid_argument,
               "offsets: expected n_docs + 1 entries beginning with 0");
  for (size_t i = 1; i < offsets.size(); ++i) {
    WEFT_REQUIRE(offsets[i - 1] <= offsets[i], ErrorCode::invalid_argument, "offsets: entry ", i,
                 " is ", offsets[i], ", smaller than the one before it (", offsets[i - 1], ")");
  }
  WEFT_REQUIRE(offsets.back() == tokens.rows, ErrorCode::invalid_argument, "offsets: the last is ",
               offsets.back(), ", expected the number of token rows, ", tokens.rows);
  return {tokens, offsets};
}

}  // namespace weft
