// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

/// Fine centroid -> documents that have a token there, each once, ascending. A posting is the document
/// ordinal in `width` little-endian bytes (2 or 3), readable at random: neither deltas nor blocks
/// stand between a list and the gather (docs/adr/0013).
struct InvertedLists {
  unsigned width = 2;
  std::vector<uint64_t> offsets;  ///< n_fine + 1, in postings
  std::vector<uint8_t> postings;  ///< offsets.back() * width bytes and kPostingSlack zero bytes

  uint64_t posting_count() const noexcept { return offsets.empty() ? 0 : offsets.back(); }
};

/// Bytes behind the last posting, so that a four-byte read of any posting stays inside.
inline constexpr size_t kPostingSlack = 4;

/// Bytes per posting for a segment of that many documents (at most 2^24).
constexpr unsigned posting_width(uint64_t n_docs) noexcept { return n_docs <= 65'536 ? 2 : 3; }

/// Lists of the tokens given by (parent, child); child_offsets[parent] + child is the fine centroid.
InvertedLists build_lists(std::span<const uint16_t> parents, std::span<const uint8_t> children,
                          std::span<const uint64_t> doc_offsets,
                          std::span<const uint32_t> child_offsets);

}  // namespace weft
