// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "index/segment.h"
#include "search/gather.h"
#include "search/probe.h"

namespace weft {

/// Approximate MaxSim of candidates from the u8 scores of fine centroids (of the parent where its cell
/// was not opened), a third of the gathered gain mixed in; keeps the `count` best, in (segment, ordinal)
/// order. Over fine centroids this ranks far better than the gather's own sums; over coarse ones it is
/// worse [PLAID22 §4.3 with TACHIOM26's centroids; docs/performance.md].
/// Row `candidate.row` of `best` [n candidates][lanes] becomes the largest table entries of a document.
void interact(std::span<const std::shared_ptr<const Segment>> segments, const Codec& codec,
              const Probe& probe, std::vector<Candidate>& candidates, size_t count,
              AlignedBuffer<uint8_t>& best, size_t threads);

/// Finds the leaders of documents: the tokens whose table entry is the document's largest for some query
/// token. A seventh to a quarter of the tokens lead, and their codes alone tell well which documents are
/// worth scoring by all of them (docs/adr/0018).
class LeaderFinder {
 public:
  LeaderFinder(const Probe& probe, const Codec& codec, size_t n_query_tokens)
      : table_(probe.score_table(codec)), n_query_tokens_(n_query_tokens), least_(probe.lanes) {}

  /// leaders: places within the document, ascending; at least one of a document with tokens. `best` is
  /// the document's row as interact() left it. Starts to fetch the leaders' codes.
  void find(const Segment& segment, uint32_t doc, const uint8_t* best,
            std::vector<uint32_t>& leaders);

 private:
  kernels::ScoreTable table_;
  size_t n_query_tokens_;
  AlignedBuffer<uint8_t> least_;
};

}  // namespace weft
