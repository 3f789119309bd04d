// SPDX-License-Identifier: Apache-2.0
//
// The best k of many scores, in order: score descending, then rank of the id.
//
// Both are one integer, smaller is better: the bits of the score, turned so that they fall as it
// rises, above the rank. A thread block sorts a slice of 4,096 such keys in shared memory (a bitonic
// network: no data decides what is compared) and keeps the k first; what the slices keep is sliced
// again until one is left. Keys are distinct, so the order of slices does not matter.
#pragma once

#include "cuda/block.h"

namespace weft::cuda {

inline constexpr unsigned kSelectThreads = 512;
inline constexpr unsigned kSlice = 4'096;
inline constexpr unsigned kMostSelected = kSlice / 2;  ///< each round at least halves the keys
inline constexpr uint64_t kNoKey = ~uint64_t{0};

using Block = Group<kSelectThreads>;

/// No key for a NaN, which only damaged files make, and for -infinity.
WEFT_BODY uint64_t key_of(float score, uint32_t rank) {
  if (!(score > -HUGE_VALF)) {
    return kNoKey;
  }
  const uint32_t bits = bits_of(score + 0.0f);  // of the two zeros, the positive one
  const uint32_t rising = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{~rising} << 32 | rank;
}

/// One query's keys: those of scores and ranks, or given ones where scores is null.
struct Selection {
  const float* scores;
  const uint32_t* ranks;
  const uint64_t* keys;
  uint64_t* kept;  ///< [slices][k], each slice's in order, kNoKey where there are fewer
  uint32_t n;
  uint32_t k;
  uint32_t width;  ///< a power of two, at most kSlice, at least n or kSlice: what is sorted
};

/// keys: kSlice of them, shared by the block.
WEFT_BODY void select(const Block& block, const Selection& all, uint32_t slice, uint64_t* keys) {
  block.step([&](unsigned t) {
    for (unsigned i = t; i < all.width; i += kSelectThreads) {
      const uint64_t from = uint64_t{slice} * kSlice + i;
      keys[i] = from >= all.n           ? kNoKey
                : all.scores != nullptr ? key_of(all.scores[from], all.ranks[from])
                                        : all.keys[from];
    }
  });
  for (unsigned run = 2; run <= all.width; run *= 2) {
    for (unsigned apart = run / 2; apart > 0; apart /= 2) {
      block.step([&](unsigned t) {
        for (unsigned pair = t; pair < all.width / 2; pair += kSelectThreads) {
          const unsigned i = 2 * apart * (pair / apart) + pair % apart;
          const bool rises = (i & run) == 0;
          const uint64_t a = keys[i], b = keys[i + apart];
          if ((a > b) == rises) {
            keys[i] = b;
            keys[i + apart] = a;
          }
        }
      });
    }
  }
  block.step([&](unsigned t) {
    for (unsigned i = t; i < all.k; i += kSelectThreads) {
      all.kept[uint64_t{slice} * all.k + i] = i < all.width ? keys[i] : kNoKey;
    }
  });
}

}  // namespace weft::cuda
