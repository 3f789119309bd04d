// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/bitmap.h"
#include "base/buffer.h"
#include "index/segment.h"
#include "search/probe.h"

namespace weft {

/// A document of a snapshot: which segment, which ordinal in it.
struct DocRef {
  uint32_t segment;
  uint32_t doc;

  friend bool operator==(const DocRef&, const DocRef&) = default;
  friend auto operator<=>(const DocRef&, const DocRef&) = default;
};

/// A document on its way through the stages. `value` is the score of the stage that made it, in that
/// stage's integer unit.
struct Candidate {
  DocRef ref;
  uint32_t value;
  uint32_t row = 0;  ///< where interact() keeps what it found of this document
};

/// Keeps the `count` (at least one) candidates with the largest values, ties by (segment, ordinal). They
/// come and stay in (segment, ordinal) order, which is the order of the files.
void keep_largest(std::vector<Candidate>& candidates, size_t count);

/// One word per document of a segment, and one for damaged postings; reused between queries.
struct Accumulators {
  std::vector<AlignedBuffer<uint32_t>> words;
  std::vector<uint32_t> bins;
  std::vector<uint32_t> docs;
};

/// Counts the postings of documents in `allow`, one bitmap per segment, in the lists of these fine
/// centroids.
uint64_t count_postings(std::span<const std::shared_ptr<const Segment>> segments,
                        std::span<const BitmapView> allow, std::span<const uint32_t> fines);

/// Stages gather and select. Reads the probed lists of every segment and adds up the gains of each
/// document: the first list of a token that holds a document is its best one, so later ones are
/// skipped by a stamp [WARP25 §4.3, without its sort]. Then a histogram gives the sum that the
/// `ncandidates`-th document reaches.
/// `allow`: per segment, the documents that may be returned; an empty span allows all.
/// Returns candidates in (segment, ordinal) order with their sums; fewer than ncandidates if fewer
/// documents were met.
std::vector<Candidate> gather(std::span<const std::shared_ptr<const Segment>> segments,
                              const Probe& probe, std::span<const BitmapView> allow,
                              uint32_t ncandidates, Accumulators& scratch);

}  // namespace weft
