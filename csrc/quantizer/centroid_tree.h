// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "kernels/kernels.h"
#include "quantizer/kmeans.h"

namespace weft {

inline constexpr uint32_t kMaxCoarse = 65'536;
inline constexpr uint32_t kMaxChildren = 256;

struct TreeParams {
  uint32_t n_coarse = 16;  ///< 1..kMaxCoarse, at most the number of sampled tokens
  uint32_t n_fine = 16;  ///< at least n_coarse; a cell never has more children than sampled tokens
  unsigned iterations = 8;
  uint64_t seed = 42;
  size_t threads = 0;                   ///< 0: as many as default_threads() says
  const BuildDevice* device = nullptr;  ///< compares rows with coarse centroids; null: the CPU
};

/// The arrays of a tree, as they are stored.
struct TreeArrays {
  size_t dim = 0;                ///< padded
  AlignedBuffer<int8_t> coarse;  ///< [n_coarse][dim]
  AlignedBuffer<int8_t> fine;    ///< [n_fine][dim], the children of a cell contiguous
  std::vector<uint32_t>
      child_offsets;  ///< [n_coarse + 1]: children of cell i are offsets[i]..offsets[i + 1]-1
};

/// Two levels of centroids: a coarse centroid is the mean of its cell, and each cell has 1..256
/// fine centroids, its children [TACHIOM26]. Tokens are int8 on one grid (see kmeans.h).
class CentroidTree {
 public:
  /// coarse_unit, fine_unit: grid steps of the centroids, in steps of the tokens' grid. The arrays
  /// must belong together: callers that read files check them first.
  CentroidTree(TreeArrays arrays, double coarse_unit, double fine_unit);

  /// k-means for the coarse level on at most 128 tokens per centroid, then an independent one in
  /// every cell, its number of children proportional to the square root of the cell's scatter, that
  /// is to sqrt(cell size) * spread. A function of (sample, params) but for params.threads. Tells
  /// progress stages "coarse" and "fine".
  static TreeArrays train(ByteRows sample, const TreeParams& params, const Progress& progress);

  ByteRows coarse() const noexcept { return {arrays_.coarse.data(), nearest_.size(), arrays_.dim}; }
  ByteRows fine() const noexcept {
    return {arrays_.fine.data(), arrays_.child_offsets.back(), arrays_.dim};
  }
  std::span<const uint32_t> child_offsets() const noexcept { return arrays_.child_offsets; }
  /// What assign() compares with: the cells, and what is added to the dots of their children.
  const NearestCentroids& cells() const noexcept { return nearest_; }
  std::span<const int32_t> fine_bias() const noexcept { return fine_bias_.span(); }
  /// Length of the longest centroid, in its grid steps.
  double longest_coarse() const noexcept { return nearest_.longest(); }
  double longest_fine() const noexcept { return longest_fine_; }

  /// The arrays of this tree with about n_more children appended to its cells, where they lower the
  /// sample's distance to the nearest child most: in proportion to its square root. The children there
  /// are stay as they are and keep their numbers. Fewer come where cells are full or tokens few.
  /// params.n_coarse and n_fine are not read. Tells progress stage "grow".
  TreeArrays grow(ByteRows sample, uint32_t n_more, const TreeParams& params,
                  const Progress& progress) const;

  /// The nearest child over the four nearest cells of each token, and the cell it belongs to; of
  /// equals the one in the nearer cell, then the smaller number. distances: where not null, the square
  /// of its distance in steps of the tokens' grid.
  void assign(const kernels::Kernels& kernel, ByteRows tokens, uint16_t* parents, uint8_t* children,
              uint32_t* distances = nullptr) const;

 private:
  TreeArrays arrays_;
  NearestCentroids nearest_;
  AlignedBuffer<int32_t> fine_bias_;
  double longest_fine_ = 0.0;
};

}  // namespace weft
