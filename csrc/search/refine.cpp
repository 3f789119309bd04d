// SPDX-License-Identifier: Apache-2.0
#include "search/refine.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNothing = -kInfinity;
constexpr size_t kTokensAtOnce = 128;  // documents are scored in pieces of this many tokens
/// A score from codes is off by a rounding of the token, of deviation |query| * step / sqrt(12), and one of
/// the int8 query, scale / sqrt(12). Two tokens may change places if they stand no further apart than this
/// many times (|query| * step + scale): two and a half deviations of the difference, rarely exceeded and
/// then by little.
constexpr float kReach = 1.0f;

}  // namespace

Scorer best_scorer(const Segment& segment) noexcept {
  // What it says it stores counts: of a segment without tokens, every array is empty.
  if (segment.rerank() == Rerank::f16 || !segment.has_codes()) {
    return Scorer::rows;
  }
  const bool precise = segment.rerank() == Rerank::plane || segment.codec()->nbits() == 8;
  return precise ? Scorer::decoded : Scorer::codes;
}

void DocumentScorer::prepare(ScoreScratch& scratch) const {
  const size_t lanes = query_.exact.view().lanes();
  if (scratch.best.size() < lanes) {
    for (auto* buffer : {&scratch.best, &scratch.code_best, &scratch.bound}) {
      buffer->resize(lanes);
    }
    scratch.scores.resize(kTokensAtOnce * lanes);
  }
  if (scratch.steps.empty()) {
    scratch.base_scale.resize(kTokensAtOnce);
    scratch.code_scale.resize(kTokensAtOnce);
    scratch.steps.resize(kTokensAtOnce);
    scratch.fines.resize(kTokensAtOnce);
  }
  std::fill_n(scratch.best.data(), lanes, kNothing);
  std::fill_n(scratch.code_best.data(), lanes, kNothing);
}

void DocumentScorer::lane_maxima(const Segment& segment, uint64_t first, size_t count,
                                 Scorer scorer, ScoreScratch& scratch) const {
  prepare(scratch);
  for (size_t done = 0; done < count; done += kTokensAtOnce) {
    const size_t n = std::min(kTokensAtOnce, count - done);
    const size_t at = static_cast<size_t>(first) + done;
    if (scorer == Scorer::codes) {
      score_codes(segment, at, n, nullptr, scratch.best.data(), nullptr, scratch);
      continue;
    }
    // The codes, where there are any, tell which tokens the better form is worth reading of.
    scratch.reached.clear();
    if (segment.has_codes()) {
      find_reached(segment, at, n, 0, scratch, scratch.reached);
    } else {
      scratch.reached.resize(n);
      std::iota(scratch.reached.begin(), scratch.reached.end(), 0u);
    }
    raise_precisely(segment, at, scratch.reached, scorer, scratch);
  }
}

void DocumentScorer::raise_precisely(const Segment& segment, size_t at,
                                     std::span<const uint32_t> tokens, Scorer scorer,
                                     ScoreScratch& scratch) const {
  const kernels::Kernels& kernel = kernels::active();
  const bool decoded = scorer == Scorer::decoded;
  const size_t width = decoded ? segment.codec()->padded_dim() : segment.dim();
  scratch.rows.grow(kTokensAtOnce * width);
  const kernels::FloatTile tile = (decoded ? query_.rotated_exact : query_.exact).view();
  for (size_t done = 0; done < tokens.size(); done += kTokensAtOnce) {
    const auto some = tokens.subspan(done, std::min(kTokensAtOnce, tokens.size() - done));
    float* row = scratch.rows.data();
    for (const uint32_t token : some) {
      if (decoded) {
        segment.codec()->decode_rotated(segment.encoded(at + token, 1), 0, scratch.levels, row);
      } else {
        kernel.half_to_float(segment.rows().data() + (at + token) * width, width, row);
      }
      row += width;
    }
    kernel.maxsim_rows(tile, scratch.rows.data(), width, some.size(), scratch.best.data());
  }
}

void DocumentScorer::score_codes(const Segment& segment, size_t at, size_t n,
                                 const uint32_t* tokens, float* best, float* scores,
                                 ScoreScratch& scratch) const {
  // score = m * (base + step * (level - middle / 2)); the kernel's dot is doubled.
  const kernels::Kernels& kernel = kernels::active();
  const Codec& codec = *segment.codec();
  const float code_unit = 0.5f * query_.scale;
  const MultiplierGrid multiplier_of = codec.multiplier_grid();
  const auto token = [&](size_t place) { return at + (tokens == nullptr ? place : tokens[place]); };
  for (size_t i = 0; i < n; ++i) {
    const size_t t = token(i);
    scratch.steps[i] = segment.steps()[t];
    scratch.fines[i] = codec.fine_of(segment.parents()[t], segment.children()[t]);
  }
  base_.learn(std::span(scratch.fines).first(n));
  kernel.half_to_float(scratch.steps.data(), n, scratch.code_scale.data());
  for (size_t i = 0; i < n; ++i) {
    const float multiplier = multiplier_of(segment.multipliers()[token(i)]);
    scratch.base_scale[i] = multiplier * base_.unit();
    scratch.code_scale[i] *= multiplier * code_unit;
  }
  kernel.score_codes(query_.rotated.view(),
                     {.codes = segment.codes().data() + at * codec.padded_dim() * codec.nbits() / 8,
                      .base = base_.rows(),
                      .base_rows = scratch.fines.data(),
                      .base_scale = scratch.base_scale.data(),
                      .code_scale = scratch.code_scale.data(),
                      .middle = (1 << codec.nbits()) - 1,
                      .nbits = codec.nbits(),
                      .n = n,
                      .tokens = tokens},
                     best, scores);
}

void DocumentScorer::find_reached(const Segment& segment, size_t at, size_t n, uint32_t place,
                                  ScoreScratch& scratch, std::vector<uint32_t>& reached) const {
  score_codes(segment, at, n, nullptr, scratch.code_best.data(), scratch.scores.data(), scratch);
  float widest = 0.0f;
  for (size_t t = 0; t < n; ++t) {
    widest = std::max(widest, scratch.code_scale[t]);
  }
  const float step = query_.scale > 0.0f ? widest / (0.5f * query_.scale) : 0.0f;
  const size_t lanes = query_.exact.view().lanes();
  std::fill_n(scratch.bound.data(), lanes, kInfinity);
  for (size_t l = 0; l < query_.n_tokens; ++l) {
    scratch.bound[l] = scratch.code_best[l] - kReach * (query_.lengths[l] * step + query_.scale);
  }
  const size_t before = reached.size();
  reached.resize(before + n + 1);
  size_t found = before;
  const float* score = scratch.scores.data();
  for (uint32_t t = 0; t < n; ++t, score += lanes) {
    int reaches = 0;
    for (size_t l = 0; l < lanes; ++l) {
      reaches |= static_cast<int>(score[l] >= scratch.bound[l]);
    }
    reached[found] = place + t;
    found += static_cast<size_t>(reaches);
  }
  reached.resize(found);
}

float DocumentScorer::score_and_reach(const Segment& segment, uint32_t doc, ScoreScratch& scratch,
                                      std::vector<uint32_t>& reached) const {
  prepare(scratch);
  const size_t first = segment.doc_offsets()[doc], length = segment.length(doc);
  for (size_t done = 0; done < length; done += kTokensAtOnce) {
    find_reached(segment, first + done, std::min(kTokensAtOnce, length - done),
                 static_cast<uint32_t>(done), scratch, reached);
  }
  return length == 0 ? kNothing : sum_of(scratch.code_best);
}

float DocumentScorer::score_reached(const Segment& segment, uint32_t doc, Scorer scorer,
                                    std::span<const uint32_t> reached,
                                    ScoreScratch& scratch) const {
  prepare(scratch);
  raise_precisely(segment, segment.doc_offsets()[doc], reached, scorer, scratch);
  return reached.empty() ? kNothing : sum_of(scratch.best);
}

float DocumentScorer::score(const Segment& segment, uint32_t doc, Scorer scorer,
                            ScoreScratch& scratch) const {
  const size_t length = segment.length(doc);
  if (length == 0) {
    return kNothing;
  }
  lane_maxima(segment, segment.doc_offsets()[doc], length, scorer, scratch);
  return sum_of(scratch.best);
}

float DocumentScorer::score_tokens(const Segment& segment, uint32_t doc,
                                   std::span<const uint32_t> tokens, ScoreScratch& scratch) const {
  if (tokens.empty()) {
    return kNothing;
  }
  prepare(scratch);
  for (size_t done = 0; done < tokens.size(); done += kTokensAtOnce) {
    const size_t n = std::min(kTokensAtOnce, tokens.size() - done);
    score_codes(segment, segment.doc_offsets()[doc], n, tokens.data() + done, scratch.best.data(),
                nullptr, scratch);
  }
  return sum_of(scratch.best);
}

float DocumentScorer::sum_of(const AlignedBuffer<float>& best) const {
  float sum = 0.0f;
  for (size_t i = 0; i < query_.n_tokens; ++i) {
    sum += best[i];
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
