// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/bitmap.h"
#include "base/buffer.h"
#include "index/segment.h"
#include "search/base_scores.h"
#include "search/gather.h"
#include "search/probe.h"
#include "search/query.h"
#include "search/refine.h"

namespace weft {

/// Buffers of a Ranker, reused between queries.
struct RankScratch {
  AlignedBuffer<uint8_t> table_best;           ///< [candidates][lanes], see interact()
  std::vector<std::vector<uint32_t>> leaders;  ///< per skimmed candidate, see LeaderFinder
  std::vector<std::vector<uint32_t>> reached;  ///< per refined candidate, see score_and_reach()
  std::vector<uint32_t> fines;                 ///< centroids that a stage needs the scores of
  std::vector<ScoreScratch> score;             ///< per thread
};

/// The last stages of one search: each scores the candidates of the one before it from more of what is
/// stored, and keeps the best, ties by id.
class Ranker {
 public:
  struct Scored {
    float score;
    DocRef ref;
    uint32_t row;  ///< of the candidate, for the stage after
  };

  Ranker(std::span<const std::shared_ptr<const Segment>> segments, const PreparedQuery& query,
         const Probe& probe, BaseScores& base, RankScratch& scratch, size_t threads,
         const std::function<bool()>& poll)
      : segments_(segments),
        query_(query),
        probe_(probe),
        base_(base),
        scorer_(query, base),
        scratch_(scratch),
        threads_(threads),
        poll_(poll) {}

  /// By the codes of the leaders; candidates come from interact().
  void skim(std::vector<Candidate>& candidates, size_t keep);
  /// By all codes. `rerank_follows`: also notes what the better form has to be read of.
  void refine(std::vector<Candidate>& candidates, size_t keep, bool rerank_follows);
  /// What refine() does of all documents of `matching`, one bitmap per segment, where scan() can do it.
  void scan(std::span<const BitmapView> matching, std::vector<Candidate>& candidates, size_t keep);
  /// By the best form stored. `refined`: candidates come from a refine that knew of this.
  void rerank(std::vector<Candidate>& candidates, size_t keep, bool refined);

  /// The scores of documents from the best form stored, in their order; keeps none.
  void score(std::span<const Candidate> candidates, std::span<float> scores);

  /// What the last stage kept, best first.
  std::span<const Scored> best() const noexcept { return scored_; }

 private:
  /// Scores every candidate with score(candidate number, scratch of the thread), in parallel.
  template <class Score>
  void score_each(std::vector<Candidate>& candidates, size_t keep, const Score& score);
  /// Has the base scores ready that `tokens` of each candidate need, or all its tokens where that is empty.
  void learn(std::span<const Candidate> candidates, std::span<const std::vector<uint32_t>> tokens);
  void keep_best(std::vector<Candidate>& candidates, size_t keep);
  bool better(const Scored& a, const Scored& b) const;

  std::span<const std::shared_ptr<const Segment>> segments_;
  const PreparedQuery& query_;
  const Probe& probe_;
  BaseScores& base_;
  DocumentScorer scorer_;
  RankScratch& scratch_;
  size_t threads_;
  const std::function<bool()>& poll_;
  std::vector<Scored> scored_;
};

}  // namespace weft
