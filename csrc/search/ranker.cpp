// SPDX-License-Identifier: Apache-2.0
#include "search/ranker.h"

#include <algorithm>
#include <limits>

#include "base/parallel.h"
#include "search/interact.h"
#include "search/scan.h"

namespace weft {

namespace {

constexpr size_t kDocsAtOnce = 16;  // taken by a thread at a time

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

void Ranker::learn(std::span<const Candidate> candidates,
                   std::span<const std::vector<uint32_t>> tokens) {
  const Codec* const codec = segments_.empty() ? nullptr : segments_.front()->codec();
  if (codec == nullptr) {
    return;
  }
  auto& fines = scratch_.fines;
  fines.clear();
  for (size_t i = 0; i < candidates.size() && fines.size() < codec->n_fine(); ++i) {
    const DocRef ref = candidates[i].ref;
    const Segment& segment = *segments_[ref.segment];
    const uint16_t* const parents = segment.parents().data() + segment.doc_offsets()[ref.doc];
    const uint8_t* const children = segment.children().data() + segment.doc_offsets()[ref.doc];
    const size_t n = tokens.empty() ? segment.length(ref.doc) : tokens[i].size();
    for (size_t j = 0; j < n; ++j) {
      const size_t t = tokens.empty() ? j : tokens[i][j];
      fines.push_back(codec->fine_of(parents[t], children[t]));
    }
  }
  if (fines.size() < codec->n_fine()) {
    base_.learn(fines, threads_);
  } else {
    base_.learn_all(threads_);
  }
}

void Ranker::skim(std::vector<Candidate>& candidates, size_t keep) {
  auto& leaders = scratch_.leaders;
  if (leaders.size() < candidates.size()) {
    leaders.resize(candidates.size());
  }
  parallel_for(
      candidates.size(), threads_,
      [&](size_t begin, size_t end, size_t) {
        LeaderFinder finder(probe_, *segments_.front()->codec(), query_.n_tokens);
        for (size_t i = begin; i < end; ++i) {
          const auto& [ref, value, row] = candidates[i];
          finder.find(*segments_[ref.segment], ref.doc,
                      scratch_.table_best.data() + row * probe_.lanes, leaders[i]);
        }
      },
      kDocsAtOnce);
  learn(candidates, leaders);
  score_each(candidates, keep, [&](size_t i, ScoreScratch& scratch) {
    const DocRef ref = candidates[i].ref;
    return scorer_.score_tokens(*segments_[ref.segment], ref.doc, leaders[i], scratch);
  });
}

void Ranker::refine(std::vector<Candidate>& candidates, size_t keep, bool rerank_follows) {
  learn(candidates, {});
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

void Ranker::scan(std::span<const BitmapView> matching, std::vector<Candidate>& candidates,
                  size_t keep) {
  base_.learn_all(threads_);
  scored_.clear();
  for (const auto& [ref, score] :
       weft::scan(segments_, query_, base_, matching, keep, threads_, poll_)) {
    scored_.push_back({score, ref, 0});
  }
  keep_best(candidates, keep);
}

void Ranker::rerank(std::vector<Candidate>& candidates, size_t keep, bool refined) {
  if (!refined) {
    learn(candidates, {});
  }
  score_each(candidates, keep, [&](size_t i, ScoreScratch& scratch) {
    const auto& [ref, value, row] = candidates[i];
    const Segment& segment = *segments_[ref.segment];
    const Scorer form = best_scorer(segment);
    return refined && form != Scorer::codes
               ? scorer_.score_reached(segment, ref.doc, form, scratch_.reached[row], scratch)
               : scorer_.score(segment, ref.doc, form, scratch);
  });
}

void Ranker::score(std::span<const Candidate> candidates, std::span<float> scores) {
  learn(candidates, {});
  parallel_for(
      candidates.size(), threads_,
      [&](size_t begin, size_t end, size_t worker) {
        for (size_t i = begin; i < end; ++i) {
          const DocRef ref = candidates[i].ref;
          const Segment& segment = *segments_[ref.segment];
          scores[i] = scorer_.score(segment, ref.doc, best_scorer(segment), scratch_.score[worker]);
        }
      },
      kDocsAtOnce, poll_);
}

}  // namespace weft
