// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "quantizer/codec.h"
#include "search/query.h"

namespace weft {

/// Scores of fine centroids against one query, each computed when it is first needed: a code is the residual
/// from its fine centroid, and a search meets but a part of them.
///
/// A score is int16: dot >> shift(), in steps of unit(). Buffers are reused from query to query.
class BaseScores {
 public:
  /// Forgets the query before. Both are kept by reference until the next start().
  void start(const PreparedQuery& query, const Codec& codec);

  unsigned shift() const noexcept { return shift_; }
  float unit() const noexcept { return unit_; }

  /// Rows of one score per lane; valid for centroids that were learned. Row n_fine is the sentinel that a
  /// damaged code reads: the lowest score there is.
  const int16_t* rows() const noexcept { return rows_.data(); }

  /// Computes the scores of those `fines` (n_fine for the sentinel) that are not known. Where all are,
  /// this is safe from several threads.
  void learn(std::span<const uint32_t> fines, size_t threads = 1);
  void learn_all(size_t threads);
  /// The rows of centroids [first, first + count), which the caller fills.
  int16_t* fill(size_t first, size_t count);

 private:
  void compute(std::span<const uint32_t> fines, AlignedBuffer<int8_t>& centroids,
               AlignedBuffer<int32_t>& dots);

  const PreparedQuery* query_ = nullptr;
  const Codec* codec_ = nullptr;
  size_t lanes_ = 0;
  unsigned shift_ = 0;
  float unit_ = 0.0f;
  AlignedBuffer<int16_t> rows_;
  std::vector<uint8_t> known_;
  std::vector<uint32_t> unknown_;
  std::vector<AlignedBuffer<int8_t>> centroids_;  ///< per thread, as are the dots
  std::vector<AlignedBuffer<int32_t>> dots_;
};

/// Smallest shift that brings dots of at most `bound` into int16.
unsigned shift_for(double bound);

/// What base scores of this query are counted in: dot >> shift, in steps of unit.
struct BaseGrid {
  unsigned shift;
  float unit;
};
BaseGrid base_grid(const PreparedQuery& query, const Codec& codec);

}  // namespace weft
