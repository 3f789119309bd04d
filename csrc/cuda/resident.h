// SPDX-License-Identifier: Apache-2.0
//
// What scans and pruned searches of a resident share.
#pragma once

#include <memory>
#include <vector>

#include "cuda/host.h"

namespace weft::cuda {

inline constexpr uint32_t kDocsAligned = 64;  ///< documents of a segment begin at a word of `allow`

/// Device memory of pruned searches, reused by the next.
struct PrunedMemory {
  std::unique_ptr<Memory> inputs, arrays, words, survivors;
};

/// A queue and what searches leave in device memory, reused by the next.
struct Workspace {
  explicit Workspace(int device) : queue(device) {}

  Queue queue;
  std::unique_ptr<Memory> scores, rows, passes, allow, kept[2];
  PrunedMemory pruned;
};

/// At most kPassRows tokens of a query from `begin` on; their rows are added to `rows`.
QueryPass make_pass(const weft_query& query, uint32_t dim, uint32_t begin,
                    std::vector<Words<4>>& rows);

/// The k first keys of each query, sorted. k: at most kMostSelected.
void select_keys(Workspace& work, SelectLaunch round, std::vector<uint64_t>& keys);

/// The score that key_of() made a key of.
float score_of(uint64_t key);

/// The tree and the lists of a collection, and searches that are pruned by them.
class PrunedSearch {
 public:
  /// Device bytes that they take: none for a codec without coarse centroids.
  static size_t bytes(const weft_codec& codec, const weft_segment* segments, uint32_t n_segments);

  PrunedSearch(Queue& queue, const weft_codec& codec, const weft_segment* segments,
               uint32_t n_segments, const Collection& all);

  /// `work.allow` holds args.allow. docs_by_rank: documents by the place of their ids.
  void search(Workspace& work, const weft_search_args& args,
              const std::vector<uint32_t>& docs_by_rank) const;

 private:
  Pruned shape_of(const weft_search_args& args) const;
  void search_some(Workspace& work, const weft_search_args& args, Pruned all, uint32_t first,
                   const std::vector<uint32_t>& docs_by_rank) const;

  Collection all_;
  unsigned nbits_;
  uint32_t most_children_ = 0;
  Memory cells_, children_, parents_, offsets_, postings_;
  Tree tree_;
};

}  // namespace weft::cuda
