// SPDX-License-Identifier: Apache-2.0
#include "search/base_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/parallel.h"
#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr size_t kRowsAtOnce = 64;  // they and their dots stay in the L1 cache
constexpr size_t kRowsAhead = 8;    // they lie scattered: fetched before they are copied

}  // namespace

unsigned shift_for(double bound) {
  const auto largest = static_cast<uint64_t>(std::ceil(bound));
  unsigned shift = 0;
  while ((largest >> shift) > INT16_MAX) {
    ++shift;
  }
  return shift;
}

BaseGrid base_grid(const PreparedQuery& query, const Codec& codec) {
  const unsigned shift = shift_for(query.longest * codec.longest_fine());
  return {shift, query.scale * codec.fine_scale() * std::ldexp(1.0f, static_cast<int>(shift))};
}

void BaseScores::start(const PreparedQuery& query, const Codec& codec) {
  query_ = &query;
  codec_ = &codec;
  lanes_ = query.rotated.view().lanes();
  const BaseGrid grid = base_grid(query, codec);
  shift_ = grid.shift;
  unit_ = grid.unit;
  const size_t n_fine = codec.n_fine();
  rows_.grow((n_fine + 1) * lanes_);
  std::fill_n(rows_.data() + n_fine * lanes_, lanes_, INT16_MIN);
  known_.assign(n_fine + 1, 0);
  known_[n_fine] = 1;
}

void BaseScores::learn(std::span<const uint32_t> fines, size_t threads) {
  const auto unknown = [&](uint32_t fine) { return known_[fine] == 0; };
  const auto first = std::ranges::find_if(fines, unknown);
  if (first == fines.end()) {
    return;
  }
  const size_t dim = codec_->padded_dim();
  unknown_.clear();
  for (const uint32_t fine : std::span(first, fines.end())) {
    if (known_[fine] == 0) {
      known_[fine] = 1;
      unknown_.push_back(fine);
    }
  }
  if (centroids_.size() < threads) {
    centroids_.resize(threads);
    dots_.resize(threads);
  }
  parallel_for(
      unknown_.size(), threads,
      [&](size_t begin, size_t end, size_t worker) {
        centroids_[worker].grow(kRowsAtOnce * dim);
        dots_[worker].grow(kRowsAtOnce * lanes_);
        compute(std::span(unknown_).subspan(begin, end - begin), centroids_[worker], dots_[worker]);
      },
      kRowsAtOnce);
}

void BaseScores::compute(std::span<const uint32_t> fines, AlignedBuffer<int8_t>& centroids,
                         AlignedBuffer<int32_t>& dots) {
  const kernels::ByteTile tile = query_->rotated.view();
  const int8_t* const all = codec_->fine().data();
  for (size_t i = 0; i < fines.size(); ++i) {
    for (size_t d = 0; d < tile.dim && i + kRowsAhead < fines.size(); d += 64) {
      __builtin_prefetch(all + fines[i + kRowsAhead] * tile.dim + d);
    }
    std::memcpy(centroids.data() + i * tile.dim, all + fines[i] * tile.dim, tile.dim);
  }
  kernels::active().tile_dots(tile, centroids.data(), fines.size(), dots.data());
  for (size_t i = 0; i < fines.size(); ++i) {
    int16_t* const row = rows_.data() + fines[i] * lanes_;
    for (size_t lane = 0; lane < lanes_; ++lane) {
      row[lane] = static_cast<int16_t>(dots[i * lanes_ + lane] >> shift_);
    }
  }
}

void BaseScores::learn_all(size_t threads) {
  std::vector<uint32_t> every(codec_->n_fine());
  std::iota(every.begin(), every.end(), 0u);
  learn(every, threads);
}

int16_t* BaseScores::fill(size_t first, size_t count) {
  std::fill_n(known_.begin() + static_cast<ptrdiff_t>(first), count, uint8_t{1});
  return rows_.data() + first * lanes_;
}

}  // namespace weft
