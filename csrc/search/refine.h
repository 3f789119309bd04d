// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "index/segment.h"
#include "search/base_scores.h"
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
  AlignedBuffer<float> best, code_best, base_scale, code_scale, scores, bound, rows;
  AlignedBuffer<uint8_t> levels;
  std::vector<uint16_t> steps;
  std::vector<uint32_t> fines;
  std::vector<uint32_t> reached;
};

/// MaxSim of documents from what is stored. `base` was started with the query, and knows every centroid if
/// several threads are to score.
class DocumentScorer {
 public:
  DocumentScorer(const PreparedQuery& query, BaseScores& base) : query_(query), base_(base) {}

  /// Sum over query tokens of the best document token; -infinity for a document without tokens. A form
  /// better than codes is read of the tokens alone that come near a maximum by their codes.
  float score(const Segment& segment, uint32_t doc, Scorer scorer, ScoreScratch& scratch) const;

  /// The same from the codes of some tokens alone, places in the document: a lower bound of the score from
  /// all codes.
  float score_tokens(const Segment& segment, uint32_t doc, std::span<const uint32_t> tokens,
                     ScoreScratch& scratch) const;

  /// The score by codes, and what a better form has to be read of for it: adds to `reached` the tokens, places
  /// in the document, that may hold a lane maximum.
  float score_and_reach(const Segment& segment, uint32_t doc, ScoreScratch& scratch,
                        std::vector<uint32_t>& reached) const;

  /// score() by a better form, given what score_and_reach() found.
  float score_reached(const Segment& segment, uint32_t doc, Scorer scorer,
                      std::span<const uint32_t> reached, ScoreScratch& scratch) const;

  /// Per query token the winning document token (its place in the document) and its similarity, from
  /// the same arithmetic as score(): the similarities add up to it.
  void align(const Segment& segment, uint32_t doc, Scorer scorer, ScoreScratch& scratch,
             std::span<uint32_t> tokens, std::span<float> similarities) const;

 private:
  /// Fills scratch.best with the lane maxima over tokens [first, first + count) of the segment.
  void lane_maxima(const Segment& segment, uint64_t first, size_t count, Scorer scorer,
                   ScoreScratch& scratch) const;
  /// Raises `best` to the scores by codes of n tokens from `at` on, or of those `tokens` lists, and keeps
  /// every score unless `scores` is null.
  void score_codes(const Segment& segment, size_t at, size_t n, const uint32_t* tokens, float* best,
                   float* scores, ScoreScratch& scratch) const;
  /// Raises scratch.code_best to the scores by codes of n tokens from `at` on, and adds to `reached`
  /// those that may hold a lane maximum of a better form, the first of them as `place`.
  void find_reached(const Segment& segment, size_t at, size_t n, uint32_t place,
                    ScoreScratch& scratch, std::vector<uint32_t>& reached) const;
  /// Raises scratch.best to the scores of tokens `at` + t by a better form.
  void raise_precisely(const Segment& segment, size_t at, std::span<const uint32_t> tokens,
                       Scorer scorer, ScoreScratch& scratch) const;
  void prepare(ScoreScratch& scratch) const;
  float sum_of(const AlignedBuffer<float>& best) const;

  const PreparedQuery& query_;
  BaseScores& base_;
};

}  // namespace weft
