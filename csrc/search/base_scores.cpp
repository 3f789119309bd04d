// SPDX-License-Identifier: Apache-2.0
#include "search/base_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr size_t kRowsAtOnce = 64;  // they and their dots stay in the L1 cache

template <class T>
void grow(AlignedBuffer<T>& buffer, size_t n) {
  if (buffer.size() < n) {
    buffer.resize(n);
  }
}

}  // namespace

unsigned shift_for(double bound) {
  const auto largest = static_cast<uint64_t>(std::ceil(bound));
  unsigned shift = 0;
  while ((largest >> shift) > INT16_MAX) {
    ++shift;
  }
  return shift;
}

void BaseScores::start(const PreparedQuery& query, const Codec& codec) {
  query_ = &query;
  codec_ = &codec;
  lanes_ = query.rotated.view().lanes();
  shift_ = shift_for(query.longest * codec.longest_fine());
  unit_ = query.scale * codec.fine_scale() * std::ldexp(1.0f, static_cast<int>(shift_));
  all_ = false;
  const size_t n_fine = codec.n_fine();
  grow(rows_, (n_fine + 1) * lanes_);
  std::fill_n(rows_.data() + n_fine * lanes_, lanes_, INT16_MIN);
  known_.assign(n_fine + 1, 0);
  known_[n_fine] = 1;
  grow(centroids_, kRowsAtOnce * codec.padded_dim());
  grow(dots_, kRowsAtOnce * lanes_);
}

void BaseScores::learn(std::span<const uint32_t> fines) {
  if (all_) {
    return;
  }
  unknown_.resize(fines.size() + 1);
  size_t count = 0;
  const size_t dim = codec_->padded_dim();
  for (const uint32_t fine : fines) {
    if (known_[fine] == 0) {
      known_[fine] = 1;
      unknown_[count++] = fine;
      const int8_t* const centroid = codec_->fine().data() + fine * dim;
      for (size_t d = 0; d < dim; d += 64) {
        __builtin_prefetch(centroid + d);
      }
    }
  }
  if (count > 0) {
    learn_listed(std::span(unknown_).first(count));
  }
}

void BaseScores::learn_listed(std::span<const uint32_t> fines) {
  const kernels::Kernels& kernel = kernels::active();
  const kernels::ByteTile tile = query_->rotated.view();
  const int8_t* const centroids = codec_->fine().data();
  for (size_t first = 0; first < fines.size(); first += kRowsAtOnce) {
    const auto some = fines.subspan(first, std::min(kRowsAtOnce, fines.size() - first));
    for (size_t i = 0; i < some.size(); ++i) {
      std::memcpy(centroids_.data() + i * tile.dim, centroids + some[i] * tile.dim, tile.dim);
    }
    kernel.tile_dots(tile, centroids_.data(), some.size(), dots_.data());
    for (size_t i = 0; i < some.size(); ++i) {
      int16_t* const row = rows_.data() + some[i] * lanes_;
      for (size_t lane = 0; lane < lanes_; ++lane) {
        row[lane] = static_cast<int16_t>(dots_[i * lanes_ + lane] >> shift_);
      }
    }
  }
}

void BaseScores::learn_all() {
  std::vector<uint32_t> every(codec_->n_fine());
  std::iota(every.begin(), every.end(), 0u);
  learn(every);
  all_ = true;
}

int16_t* BaseScores::fill(size_t first, size_t count) {
  std::fill_n(known_.begin() + static_cast<ptrdiff_t>(first), count, uint8_t{1});
  return rows_.data() + first * lanes_;
}

}  // namespace weft
