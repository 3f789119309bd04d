// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

/// Borrowed set of document ordinals: bit i % 64 of words[i / 64] belongs to i. `size` counts bits;
/// those of the last word beyond it are not read, or are zero.
struct BitmapView {
  const uint64_t* words = nullptr;
  size_t size = 0;

  size_t word_count() const noexcept { return (size + 63) / 64; }

  /// i < size.
  bool test(size_t i) const noexcept { return ((words[i / 64] >> (i % 64)) & 1U) != 0; }
};

}  // namespace weft
