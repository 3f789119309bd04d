// SPDX-License-Identifier: Apache-2.0
//
// k-means in integers. Rows and centroids are int8 on one grid, so squared distances are integers:
//
//   |x - c|^2 / 2 = |x|^2 / 2 - (x.c + bias),   bias = -|c|^2 / 2, rounded
//
// and a mean is the rounded sum of int8 rows. Integer sums do not depend on their order, hence the
// result depends neither on the number of threads nor on the instruction set. Nothing overflows:
// sums are 64-bit, and |x.c| + |bias| < 2^28 up to dim 4,128.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/random.h"
#include "kernels/kernels.h"
#include "quantizer/build_device.h"
#include "quantizer/nearest.h"

namespace weft {

/// `count` of the numbers 0..n-1, uniform without replacement, handed out in ascending order.
class AscendingDraw {
 public:
  AscendingDraw(uint64_t n, uint64_t count, Random random) : random_(random), n_(n), left_(count) {}

  uint64_t left() const noexcept { return left_; }
  /// The next number; left() must not be 0.
  uint64_t next();

 private:
  Random random_;
  uint64_t n_;
  uint64_t left_;
  uint64_t at_ = 0;
};

/// Row numbers by cluster: those of cluster c are members[starts[c] .. starts[c + 1]), ascending.
struct Clusters {
  std::vector<uint32_t> members;
  std::vector<size_t> starts;

  size_t size() const noexcept { return starts.size() - 1; }
  std::span<const uint32_t> operator[](size_t cluster) const {
    return std::span(members).subspan(starts[cluster], starts[cluster + 1] - starts[cluster]);
  }
};

/// Told on the calling thread how many rows were done since the last call; may throw to cancel.
using Tick = std::function<void(uint64_t rows)>;

/// Every row to its nearest centroid, found by `device` or, where it is null, here.
Clusters cluster_rows(ByteRows rows, const NearestCentroids& centroids, size_t threads,
                      const Tick& tick = {}, const BuildDevice* device = nullptr);

/// Copies rows so that they lie together: what is read many times is read in order.
AlignedBuffer<int8_t> gather_rows(ByteRows rows, std::span<const uint32_t> numbers);

/// Sum of the squared distances between rows and their mean.
double scatter(ByteRows rows, std::span<const uint32_t> numbers);

struct KMeansParams {
  size_t n_clusters = 1;  ///< 1..65,536 with the fixed ones, at most as many as there are rows
  unsigned iterations = 8;
  uint64_t seed = 42;
  uint64_t stream = 0;  ///< tells runs with the same seed apart
  size_t threads = 1;
  const BuildDevice* device = nullptr;  ///< compares rows with centroids; null: the CPU
};

/// The rounded means of n_clusters clusters, [n_clusters][dim]. Starts from rows drawn without
/// replacement. After each round an empty cluster takes the row farthest from the mean of a cluster
/// with large scatter, each such cluster giving one. Rows also go to `fixed` centroids, which stay as
/// they are: the means come to lie where those are far.
AlignedBuffer<int8_t> kmeans(const kernels::Kernels& kernel, ByteRows rows,
                             const KMeansParams& params, const Tick& tick = {},
                             ByteRows fixed = {});

}  // namespace weft
