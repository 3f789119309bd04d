// SPDX-License-Identifier: Apache-2.0
#include "search/interact.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/dispatch.h"

namespace weft {

namespace {

/// interact ranks by kTableShare * (sum of table maxima) + kGainShare * gathered gain.
constexpr uint32_t kTableShare = 10;
constexpr uint32_t kGainShare = 3;
/// Documents lie scattered: their centroid numbers are fetched while earlier ones are scored.
constexpr size_t kDocsAhead = 4;
constexpr size_t kDocsAtOnce = 128;  // taken by a thread at a time

template <class T>
void prefetch(const T* first, size_t n) {
  const auto* const bytes = reinterpret_cast<const char*>(first);
  for (size_t i = 0; i < n * sizeof(T); i += 64) {
    __builtin_prefetch(bytes + i);
  }
}

void prefetch_centroids(const Segment& segment, uint32_t doc) {
  const uint64_t first = segment.doc_offsets()[doc];
  prefetch(segment.parents().data() + first, segment.length(doc));
  prefetch(segment.children().data() + first, segment.length(doc));
}

}  // namespace

void interact(std::span<const std::shared_ptr<const Segment>> segments, const Codec& codec,
              const Probe& probe, std::vector<Candidate>& candidates, size_t count,
              AlignedBuffer<uint8_t>& best, size_t threads) {
  const kernels::Kernels& kernel = kernels::active();
  const kernels::ScoreTable table = probe.score_table(codec);
  best.grow(candidates.size() * probe.lanes);
  const auto score = [&](size_t begin, size_t end, size_t) {
    for (size_t i = begin; i < end; ++i) {
      if (i + kDocsAhead < candidates.size()) {
        const DocRef ahead = candidates[i + kDocsAhead].ref;
        prefetch_centroids(*segments[ahead.segment], ahead.doc);
      }
      Candidate& candidate = candidates[i];
      const Segment& segment = *segments[candidate.ref.segment];
      const uint64_t first = segment.doc_offsets()[candidate.ref.doc];
      const uint32_t sum = kernel.table_maxsim(
          table, segment.parents().data() + first, segment.children().data() + first,
          segment.length(candidate.ref.doc), best.data() + i * probe.lanes);
      candidate.value = kTableShare * sum + kGainShare * (candidate.value << probe.gain_shift);
      candidate.row = static_cast<uint32_t>(i);
    }
  };
  parallel_for(candidates.size(), threads, score, kDocsAtOnce);
  keep_largest(candidates, count);
}

void LeaderFinder::find(const Segment& segment, uint32_t doc, const uint8_t* best,
                        std::vector<uint32_t>& leaders) {
  // A lane that no query token uses is never reached, nor is one without any score above 0.
  for (size_t l = 0; l < least_.size(); ++l) {
    least_[l] = l < n_query_tokens_ ? std::max<uint8_t>(best[l], 1) : 255;
  }
  const uint64_t first = segment.doc_offsets()[doc];
  const size_t length = segment.length(doc);
  leaders.resize(length + 1);
  leaders.resize(kernels::active().table_leaders(table_, segment.parents().data() + first,
                                                 segment.children().data() + first, length,
                                                 least_.data(), leaders.data()));
  if (leaders.empty() && length > 0) {
    leaders.push_back(0);
  }
  const size_t width = segment.codec()->padded_dim() * segment.codec()->nbits() / 8;
  prefetch(segment.steps().data() + first, length);
  prefetch(segment.multipliers().data() + first, length);
  for (const uint32_t token : leaders) {
    prefetch(segment.codes().data() + (first + token) * width, width);
  }
}

}  // namespace weft
