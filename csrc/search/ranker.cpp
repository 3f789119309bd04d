// SPDX-License-Identifier: Apache-2.0
#include "search/ranker.h"

#include <algorithm>
#include <limits>

#include "base/parallel.h"
#include "search/interact.h"

namespace weft {

namespace {

constexpr size_t kDocsAtOnce = 64;  // taken by a thread at a time

}  // namespace

bool Ranker::better(const Scored& a, const Scored& b) const {
  if (a.score != b.score) {
    return a.score > b.score;
  }
  if (a.ref.segment == b.ref.segment) {
    const Segment& segment = *segments_[a.ref.segment];
    return segment.id_rank(a.ref.doc) < segment.id_rank(b.ref.doc);
  }
  return segments_[a.ref.segment]->id(a.ref.doc) < segments_[b.ref.segment]->id(b.ref.doc);
}

void Ranker::keep_best(std::vector<Candidate>& candidates, size_t keep) {
  std::erase_if(scored_, [](const Scored& one) {
    return one.score == -std::numeric_limits<float>::infinity();
  });
  keep = std::min(keep, scored_.size());
  std::partial_sort(scored_.begin(), scored_.begin() + static_cast<ptrdiff_t>(keep), scored_.end(),
                    [this](const Scored& a, const Scored& b) { return better(a, b); });
  scored_.resize(keep);
  candidates.clear();
  for (const Scored& one : scored_) {
    candidates.push_back({one.ref, 0, one.row});
  }
  // The order of the files, for the stage after.
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.ref < b.ref; });
}

template <class Score>
void Ranker::score_each(std::vector<Candidate>& candidates, size_t keep, const Score& score) {
  scored_.resize(candidates.size());
  parallel_for(
      candidates.size(), threads_,
      [&](size_t begin, size_t end, size_t worker) {
        for (size_t i = begin; i < end; ++i) {
          scored_[i] = {score(i, scratch_.score[worker]), candidates[i].ref,
                        static_cast<uint32_t>(i)};
        }
      },
      kDocsAtOnce, poll_);
  keep_best(candidates, keep);
}

void Ranker::skim(std::vector<Candidate>& candidates, size_t keep) {
  LeaderFinder finder(probe_, *segments_.front()->codec(), query_.n_tokens);
  const auto find = [&](size_t i, std::vector<uint32_t>& leaders) {
    const auto& [ref, value, row] = candidates[i];
    finder.find(*segments_[ref.segment], ref.doc, scratch_.table_best.data() + row * probe_.lanes,
                leaders);
  };
  // While one document is scored, the leaders of the next are known and their codes on the way.
  std::vector<uint32_t> now, next;
  find(0, now);
  scored_.resize(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (i + 1 < candidates.size()) {
      find(i + 1, next);
    }
    const DocRef ref = candidates[i].ref;
    scored_[i] = {scorer_.score_tokens(*segments_[ref.segment], ref.doc, now, scratch_.score[0]),
                  ref, 0};
    std::swap(now, next);
  }
  keep_best(candidates, keep);
}

void Ranker::refine(std::vector<Candidate>& candidates, size_t keep, bool rerank_follows) {
  if (!rerank_follows) {
    score_each(candidates, keep, [&](size_t i, ScoreScratch& scratch) {
      const DocRef ref = candidates[i].ref;
      return scorer_.score(*segments_[ref.segment], ref.doc, Scorer::codes, scratch);
    });
    return;
  }
  if (scratch_.reached.size() < candidates.size()) {
    scratch_.reached.resize(candidates.size());
  }
  score_each(candidates, keep, [&](size_t i, ScoreScratch& scratch) {
    const DocRef ref = candidates[i].ref;
    scratch_.reached[i].clear();
    return scorer_.score_and_reach(*segments_[ref.segment], ref.doc, scratch, scratch_.reached[i]);
  });
}

void Ranker::rerank(std::vector<Candidate>& candidates, size_t keep, bool refined) {
  score_each(candidates, keep, [&](size_t i, ScoreScratch& scratch) {
    const auto& [ref, value, row] = candidates[i];
    const Segment& segment = *segments_[ref.segment];
    const Scorer form = best_scorer(segment);
    return refined && form != Scorer::codes
               ? scorer_.score_reached(segment, ref.doc, form, scratch_.reached[row], scratch)
               : scorer_.score(segment, ref.doc, form, scratch);
  });
}

}  // namespace weft
