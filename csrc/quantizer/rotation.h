// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace weft {

/// Largest dim of a token embedding: 4,096 and the one dimension that turns a dot product into a
/// cosine.
inline constexpr size_t kMaxDim = 4'097;

/// dim as the kernels see it: the next multiple of 32.
constexpr size_t pad_dim(size_t dim) { return (dim + 31) / 32 * 32; }

/// The seeded random rotation that tokens, centroids and queries share: it spreads what a token
/// embedding says evenly over the dimensions, so that one step fits all of them.
///
/// Two rounds of random signs and a normalised Walsh-Hadamard transform. The transform is
/// block-diagonal over the powers of two that add up to padded_dim, largest first in round one and
/// smallest first in round two, so that the blocks mix. A function of (padded_dim, seed); only IEEE
/// additions and multiplications in a fixed order, hence the same bits everywhere [FWHT].
class Rotation {
 public:
  /// dim: 1..kMaxDim, else Error(invalid_argument).
  Rotation(size_t dim, uint64_t seed);

  size_t dim() const noexcept { return dim_; }
  size_t padded_dim() const noexcept { return padded_dim_; }

  /// Random sign / sqrt(block length) of each dimension of a round, 0 or 1.
  std::span<const float> factors(size_t round) const noexcept { return rounds_[round].factors; }

  /// out[padded_dim] = rotation of row[dim], zero-padded. They may not overlap.
  void apply(const float* row, float* out) const;

  /// row[dim] = what apply() made in[padded_dim] of; padding is dropped.
  void invert(const float* in, float* row) const;

 private:
  struct Round {
    std::vector<size_t> blocks;  ///< powers of two in order, their sum is padded_dim
    std::vector<float> factors;  ///< random sign / sqrt(block length) of each dimension
  };

  size_t dim_;
  size_t padded_dim_;
  Round rounds_[2];
};

}  // namespace weft
