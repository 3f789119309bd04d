// SPDX-License-Identifier: Apache-2.0
#include "index/inverted_lists.h"

#include <limits>

namespace weft {

InvertedLists build_lists(std::span<const uint16_t> parents, std::span<const uint8_t> children,
                          std::span<const uint64_t> doc_offsets,
                          std::span<const uint32_t> child_offsets) {
  const size_t n_docs = doc_offsets.size() - 1;
  const size_t n_fine = child_offsets.back();
  InvertedLists lists;
  lists.width = posting_width(n_docs);
  lists.offsets.assign(n_fine + 1, 0);

  // A counting sort in two passes. Documents come in order, so a list has seen a document exactly if
  // the document is the last one it saw.
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  std::vector<uint32_t> last(n_fine, kNone);
  const auto for_each_posting = [&](auto&& visit) {
    for (size_t doc = 0; doc < n_docs; ++doc) {
      for (uint64_t t = doc_offsets[doc]; t < doc_offsets[doc + 1]; ++t) {
        const uint32_t fine = child_offsets[parents[t]] + children[t];
        if (last[fine] != doc) {
          last[fine] = static_cast<uint32_t>(doc);
          visit(fine, static_cast<uint32_t>(doc));
        }
      }
    }
  };
  for_each_posting([&](uint32_t fine, uint32_t) { ++lists.offsets[fine + 1]; });
  for (size_t i = 0; i < n_fine; ++i) {
    lists.offsets[i + 1] += lists.offsets[i];
  }
  lists.postings.assign(lists.offsets.back() * lists.width + kPostingSlack, 0);
  std::vector<uint64_t> next(lists.offsets.begin(), lists.offsets.end() - 1);
  last.assign(n_fine, kNone);
  for_each_posting([&](uint32_t fine, uint32_t doc) {
    uint8_t* out = lists.postings.data() + next[fine]++ * lists.width;
    for (unsigned byte = 0; byte < lists.width; ++byte) {
      out[byte] = static_cast<uint8_t>(doc >> (8 * byte));
    }
  });
  return lists;
}

}  // namespace weft
