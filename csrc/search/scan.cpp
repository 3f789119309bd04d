// SPDX-License-Identifier: Apache-2.0
#include "search/scan.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/buffer.h"
#include "base/parallel.h"
#include "kernels/dispatch.h"
#include "quantizer/packing.h"

namespace weft {

namespace {

constexpr size_t kTokensAtOnce = 128;
constexpr size_t kDocsAtOnce = 2'048;    // taken by a thread at a time
constexpr size_t kShortestList = 1'024;  // documents held before the first are dropped

/// The best documents that one thread has met.
class Shortlist {
 public:
  explicit Shortlist(size_t keep) : keep_(keep), limit_(std::max(2 * keep, kShortestList)) {}

  /// A score below this one is of no use.
  float least() const noexcept { return least_; }

  void add(DocRef ref, float score) {
    docs_.push_back({ref, score});
    if (docs_.size() >= limit_) {
      shorten();
    }
  }

  /// Drops what is behind the best `keep` and does not tie with the last of them.
  void shorten() {
    if (docs_.size() > keep_) {
      const auto last = docs_.begin() + static_cast<ptrdiff_t>(keep_ - 1);
      std::nth_element(docs_.begin(), last, docs_.end(),
                       [](const ScannedDoc& a, const ScannedDoc& b) { return a.score > b.score; });
      least_ = last->score;
      std::erase_if(docs_, [this](const ScannedDoc& one) { return one.score < least_; });
      limit_ = std::max(limit_, 2 * docs_.size());
    }
  }

  std::span<const ScannedDoc> docs() const noexcept { return docs_; }

 private:
  size_t keep_, limit_;
  float least_ = std::numeric_limits<float>::lowest();
  std::vector<ScannedDoc> docs_;
};

/// Scores tokens of a segment, `kTokensAtOnce` at most.
class RowScorer {
 public:
  RowScorer(const PreparedQuery& query, const BaseScores& base, const Codec& codec)
      : base_(base), query_scale_(query.scale), planes_(planes_of(query, codec)) {
    const kernels::ByteTile tile = query.rotated.view();
    row_ = {planes_.data(), tile.sums[0], tile.dim};
  }

  void score(const Segment& segment, size_t first, size_t n, float* scores) const {
    const kernels::Kernels& kernel = kernels::active();
    const Codec& codec = *segment.codec();
    const MultiplierGrid multiplier_of = codec.multiplier_grid();
    const float code_unit = 0.5f * query_scale_;  // the kernel's dot is doubled
    alignas(64) float base_scale[kTokensAtOnce], code_scale[kTokensAtOnce];
    uint32_t fines[kTokensAtOnce];
    kernel.half_to_float(segment.steps().data() + first, n, code_scale);
    for (size_t i = 0; i < n; ++i) {
      const size_t t = first + i;
      const float multiplier = multiplier_of(segment.multipliers()[t]);
      fines[i] = codec.fine_of(segment.parents()[t], segment.children()[t]);
      base_scale[i] = multiplier * base_.unit();
      code_scale[i] *= multiplier * code_unit;
    }
    kernel.score_row(row_,
                     {.codes = segment.codes().data() + first * row_.dim * codec.nbits() / 8,
                      .base = base_.rows(),
                      .base_rows = fines,
                      .base_scale = base_scale,
                      .code_scale = code_scale,
                      .middle = (1 << codec.nbits()) - 1,
                      .nbits = codec.nbits(),
                      .n = n,
                      .tokens = nullptr},
                     scores);
  }

 private:
  static AlignedBuffer<int8_t> planes_of(const PreparedQuery& query, const Codec& codec) {
    const kernels::ByteTile tile = query.rotated.view();
    std::vector<int8_t> row(tile.dim);
    for (size_t d = 0; d < tile.dim; d += 4) {
      std::memcpy(row.data() + d, tile.data + d * kernels::kLanes, 4);
    }
    AlignedBuffer<int8_t> planes(planes_size(tile.dim, codec.nbits()));
    code_row(row.data(), tile.dim, codec.nbits(), planes.data());
    return planes;
  }

  const BaseScores& base_;
  float query_scale_;
  AlignedBuffer<int8_t> planes_;
  kernels::CodeRow row_{};
};

/// Some consecutive documents of a segment.
struct Run {
  uint32_t segment, first, last;
};

std::vector<Run> runs_of(std::span<const std::shared_ptr<const Segment>> segments) {
  std::vector<Run> runs;
  for (uint32_t s = 0; s < segments.size(); ++s) {
    const uint32_t n_docs = segments[s]->doc_count();
    for (uint32_t first = 0; first < n_docs; first += kDocsAtOnce) {
      runs.push_back({s, first, std::min<uint32_t>(first + kDocsAtOnce, n_docs)});
    }
  }
  return runs;
}

}  // namespace

std::vector<ScannedDoc> scan(std::span<const std::shared_ptr<const Segment>> segments,
                             const PreparedQuery& query, const BaseScores& base,
                             std::span<const BitmapView> matching, size_t keep, size_t threads,
                             const std::function<bool()>& poll) {
  if (segments.empty() || keep == 0) {
    return {};
  }
  const RowScorer scorer(query, base, *segments.front()->codec());
  const std::vector<Run> runs = runs_of(segments);
  std::vector<Shortlist> lists(threads, Shortlist(keep));
  const auto scan_run = [&](const Run& run, Shortlist& list) {
    const Segment& segment = *segments[run.segment];
    const auto offsets = segment.doc_offsets();
    float scores[kTokensAtOnce];
    for (uint32_t doc = run.first; doc < run.last;) {
      const size_t begin = offsets[doc];
      const size_t n = std::min<size_t>(kTokensAtOnce, offsets[run.last] - begin);
      if (n == 0) {
        return;
      }
      scorer.score(segment, begin, n, scores);
      for (; doc < run.last && offsets[doc] - begin < n; ++doc) {
        const float score = scores[offsets[doc] - begin];
        if (score >= list.least() && offsets[doc + 1] > offsets[doc] &&
            matching[run.segment].test(doc)) {
          list.add({run.segment, doc}, score);
        }
      }
    }
  };
  parallel_for(
      runs.size(), threads,
      [&](size_t begin, size_t end, size_t worker) {
        for (size_t i = begin; i < end; ++i) {
          scan_run(runs[i], lists[worker]);
        }
      },
      1, poll);
  Shortlist all(keep);
  for (const Shortlist& list : lists) {
    for (const ScannedDoc& one : list.docs()) {
      if (one.score >= all.least()) {
        all.add(one.ref, one.score);
      }
    }
  }
  all.shorten();
  return {all.docs().begin(), all.docs().end()};
}

}  // namespace weft
