// SPDX-License-Identifier: Apache-2.0
#include "search/refine.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr size_t kTokensAtOnce = 128;  // documents are scored in pieces of this many tokens
/// interact ranks by kTableShare * (sum of table maxima) + kGainShare * gathered gain.
constexpr uint32_t kTableShare = 10;
constexpr uint32_t kGainShare = 3;

}  // namespace

Scorer best_scorer(const Segment& segment) noexcept {
  if (!segment.rows().empty() || !segment.has_codes()) {
    return Scorer::rows;
  }
  const bool precise = !segment.plane().empty() || segment.codec()->nbits() == 8;
  return precise ? Scorer::decoded : Scorer::codes;
}

void interact(std::span<const std::shared_ptr<const Segment>> segments, const Codec& codec,
              const Probe& probe, std::vector<Candidate>& candidates, size_t count) {
  if (candidates.size() <= count) {
    return;
  }
  const kernels::Kernels& kernel = kernels::active();
  const kernels::ScoreTable table = probe.score_table(codec);
  for (Candidate& candidate : candidates) {
    const Segment& segment = *segments[candidate.ref.segment];
    const uint64_t first = segment.doc_offsets()[candidate.ref.doc];
    const uint32_t sum =
        kernel.table_maxsim(table, segment.parents().data() + first,
                            segment.children().data() + first, segment.length(candidate.ref.doc));
    candidate.value = kTableShare * sum + kGainShare * (candidate.value << probe.gain_shift);
  }
  keep_largest(candidates, count);
}

void DocumentScorer::lane_maxima(const Segment& segment, uint64_t first, size_t count,
                                 Scorer scorer, ScoreScratch& scratch) const {
  const kernels::Kernels& kernel = kernels::active();
  const Codec* codec = segment.codec();
  const size_t lanes = query_.exact.view().lanes();
  if (scratch.best.size() < lanes) {
    scratch.best.resize(lanes);
  }
  std::fill_n(scratch.best.data(), lanes, kNothing);
  for (size_t done = 0; done < count; done += kTokensAtOnce) {
    const size_t n = std::min(kTokensAtOnce, count - done);
    const size_t at = static_cast<size_t>(first) + done;
    if (scorer == Scorer::codes) {
      score_codes(kernel, segment, at, n, scratch);
      continue;
    }
    // Few documents get here, and every digit counts: f32 rows and the f32 query.
    const bool decoded = scorer == Scorer::decoded;
    const size_t width = decoded ? codec->padded_dim() : segment.dim();
    if (scratch.rows.size() < kTokensAtOnce * width) {
      scratch.rows.resize(kTokensAtOnce * width);
    }
    if (decoded) {
      codec->decode_rotated(segment.encoded(at, n), scratch.rows.data());
    } else {
      kernel.half_to_float(segment.rows().data() + at * width, n * width, scratch.rows.data());
    }
    kernel.maxsim_rows((decoded ? query_.rotated_exact : query_.exact).view(), scratch.rows.data(),
                       width, n, scratch.best.data());
  }
}

void DocumentScorer::score_codes(const kernels::Kernels& kernel, const Segment& segment, size_t at,
                                 size_t n, ScoreScratch& scratch) const {
  if (scratch.base_scale.size() == 0) {
    scratch.base_scale.resize(kTokensAtOnce);
    scratch.code_scale.resize(kTokensAtOnce);
  }
  // score = m * (base + step * (level - middle / 2)); the kernel's dot is doubled.
  const Codec& codec = *segment.codec();
  const float code_unit = 0.5f * query_.scale;
  kernel.half_to_float(segment.steps().data() + at, n, scratch.code_scale.data());
  for (size_t t = 0; t < n; ++t) {
    const float multiplier = multiplier_of(segment.multipliers()[at + t]);
    scratch.base_scale[t] = multiplier * probe_.base_unit;
    scratch.code_scale[t] *= multiplier * code_unit;
  }
  kernel.score_codes(query_.rotated.view(),
                     {.codes = segment.codes().data() + at * codec.padded_dim() * codec.nbits() / 8,
                      .parents = segment.parents().data() + at,
                      .base = probe_.base.data(),
                      .n_cells = codec.n_coarse(),
                      .base_scale = scratch.base_scale.data(),
                      .code_scale = scratch.code_scale.data(),
                      .middle = (1 << codec.nbits()) - 1,
                      .nbits = codec.nbits(),
                      .n = n},
                     scratch.best.data());
}

float DocumentScorer::score(const Segment& segment, uint32_t doc, Scorer scorer,
                            ScoreScratch& scratch) const {
  const size_t length = segment.length(doc);
  if (length == 0) {
    return kNothing;
  }
  lane_maxima(segment, segment.doc_offsets()[doc], length, scorer, scratch);
  float sum = 0.0f;
  for (size_t i = 0; i < query_.n_tokens; ++i) {
    sum += scratch.best[i];
  }
  return std::isnan(sum) ? kNothing : sum;  // damaged steps or rows must not upset the ranking
}

void DocumentScorer::align(const Segment& segment, uint32_t doc, Scorer scorer,
                           ScoreScratch& scratch, std::span<uint32_t> tokens,
                           std::span<float> similarities) const {
  std::fill(similarities.begin(), similarities.end(), kNothing);
  std::fill(tokens.begin(), tokens.end(), 0u);
  const uint64_t first = segment.doc_offsets()[doc];
  for (uint32_t token = 0; token < segment.length(doc); ++token) {
    lane_maxima(segment, first + token, 1, scorer, scratch);
    for (size_t i = 0; i < query_.n_tokens; ++i) {
      if (scratch.best[i] > similarities[i]) {
        similarities[i] = scratch.best[i];
        tokens[i] = token;
      }
    }
  }
}

}  // namespace weft
