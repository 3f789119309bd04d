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
#include "search/query.h"

namespace weft {

/// Where a score comes from, poorest first: the codes and an int8 query; what the codes (and their second
/// plane) decode to and the f32 query; the stored rows and the f32 query.
enum class Scorer : uint8_t { codes, decoded, rows };

/// The best form this segment stores. Decoding is worth it where the int8 query is the larger error: with
/// a second plane, or 8 bits.
Scorer best_scorer(const Segment& segment) noexcept;

/// Buffers of one document's scoring, reused.
struct ScoreScratch {
  AlignedBuffer<float> best, base_scale, code_scale, rows;
};

/// Approximate MaxSim of candidates from the u8 scores of fine centroids (of the parent where its cell
/// was not opened), a third of the gathered gain mixed in; keeps the `count` best, in (segment, ordinal)
/// order. Over fine centroids this ranks far better than the gather's own sums; over coarse ones it is
/// worse [PLAID22 §4.3 with TACHIOM26's centroids; docs/performance.md].
void interact(std::span<const std::shared_ptr<const Segment>> segments, const Codec& codec,
              const Probe& probe, std::vector<Candidate>& candidates, size_t count);

/// MaxSim of documents from what is stored. Needs the base table of `probe` for codes and plane.
class DocumentScorer {
 public:
  DocumentScorer(const PreparedQuery& query, const Probe& probe) : query_(query), probe_(probe) {}

  /// Sum over query tokens of the best document token; -infinity for a document without tokens.
  float score(const Segment& segment, uint32_t doc, Scorer scorer, ScoreScratch& scratch) const;

  /// Per query token the winning document token (its place in the document) and its similarity, from
  /// the same arithmetic as score(): the similarities add up to it.
  void align(const Segment& segment, uint32_t doc, Scorer scorer, ScoreScratch& scratch,
             std::span<uint32_t> tokens, std::span<float> similarities) const;

 private:
  /// Fills scratch.best with the lane maxima over tokens [first, first + count) of the segment.
  void lane_maxima(const Segment& segment, uint64_t first, size_t count, Scorer scorer,
                   ScoreScratch& scratch) const;
  void score_codes(const kernels::Kernels& kernel, const Segment& segment, size_t at, size_t n,
                   ScoreScratch& scratch) const;

  const PreparedQuery& query_;
  const Probe& probe_;
};

}  // namespace weft
