// SPDX-License-Identifier: Apache-2.0
#include "quantizer/kmeans.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "base/parallel.h"

namespace weft {

namespace {

constexpr size_t kBlockRows = 4'096;

/// sums[d] += sum of element d over the rows.
void add_rows(ByteRows rows, std::span<const uint32_t> numbers, std::vector<int64_t>& sums) {
  constexpr size_t kChunk = 256;  // 256 * 127 fits an int16
  std::vector<int16_t> partial(rows.dim);
  for (size_t first = 0; first < numbers.size(); first += kChunk) {
    std::fill(partial.begin(), partial.end(), int16_t{0});
    for (const uint32_t number : numbers.subspan(first, std::min(kChunk, numbers.size() - first))) {
      const int8_t* row = rows.row(number);
      for (size_t d = 0; d < rows.dim; ++d) {
        partial[d] = static_cast<int16_t>(partial[d] + row[d]);
      }
    }
    for (size_t d = 0; d < rows.dim; ++d) {
      sums[d] += partial[d];
    }
  }
}

int32_t squared_length(const int8_t* row, size_t dim) {
  int32_t sum = 0;
  for (size_t d = 0; d < dim; ++d) {
    sum += row[d] * row[d];
  }
  return sum;
}

/// The mean, halves rounded away from zero.
void round_mean(ByteRows rows, std::span<const uint32_t> numbers, int8_t* mean) {
  std::vector<int64_t> sums(rows.dim);
  add_rows(rows, numbers, sums);
  const auto n = static_cast<double>(numbers.size());
  for (size_t d = 0; d < rows.dim; ++d) {
    const double value = static_cast<double>(sums[d]) / n;
    mean[d] = static_cast<int8_t>(static_cast<int>(value + (value < 0.0 ? -0.5 : 0.5)));
  }
}

/// The row farthest from `centre`; the first of equals.
uint32_t farthest(ByteRows rows, std::span<const uint32_t> numbers, const int8_t* centre) {
  uint32_t best = numbers.front();
  int32_t largest = -1;
  for (const uint32_t number : numbers) {
    const int8_t* row = rows.row(number);
    int32_t distance = 0;
    for (size_t d = 0; d < rows.dim; ++d) {
      distance += (row[d] - centre[d]) * (row[d] - centre[d]);
    }
    if (distance > largest) {
      largest = distance;
      best = number;
    }
  }
  return best;
}

/// Gives every empty cluster from `first` on a row of one with large scatter, as far as there are such
/// clusters.
void fill_empty(ByteRows rows, const Clusters& clusters, size_t first, size_t threads,
                AlignedBuffer<int8_t>& centroids) {
  std::vector<uint32_t> empty;
  for (size_t c = first; c < clusters.size(); ++c) {
    if (clusters[c].empty()) {
      empty.push_back(static_cast<uint32_t>(c));
    }
  }
  if (empty.empty()) {
    return;
  }
  std::vector<double> spread(clusters.size());
  parallel_for(
      clusters.size(), threads,
      [&](size_t begin, size_t end, size_t) {
        for (size_t c = begin; c < end; ++c) {
          spread[c] = scatter(rows, clusters[c]);
        }
      },
      64);
  std::vector<uint32_t> donors;
  for (size_t c = 0; c < clusters.size(); ++c) {
    if (spread[c] > 0.0) {
      donors.push_back(static_cast<uint32_t>(c));
    }
  }
  std::stable_sort(donors.begin(), donors.end(),
                   [&](uint32_t a, uint32_t b) { return spread[a] > spread[b]; });
  for (size_t i = 0; i < std::min(empty.size(), donors.size()); ++i) {
    const int8_t* mean = centroids.data() + donors[i] * rows.dim;
    const int8_t* row = rows.row(farthest(rows, clusters[donors[i]], mean));
    std::copy_n(row, rows.dim, centroids.data() + empty[i] * rows.dim);
  }
}

}  // namespace

uint64_t AscendingDraw::next() {
  while (random_.below(n_ - at_) >= left_) {
    ++at_;
  }
  --left_;
  return at_++;
}

namespace {

/// The number of the nearest centroid of each row.
void label_rows(ByteRows rows, const NearestCentroids& centroids, size_t threads, const Tick& tick,
                uint16_t* labels) {
  std::atomic<uint64_t> done = 0;
  uint64_t told = 0;
  const auto tell = [&] {
    const uint64_t now = done.load();
    if (tick && now != told) {
      tick(now - told);
      told = now;
    }
    return false;
  };
  parallel_for(
      rows.n, threads,
      [&](size_t begin, size_t end, size_t) {
        std::vector<BestFour> best(end - begin);
        centroids.find({rows.row(begin), end - begin, rows.dim}, best.data());
        for (size_t i = begin; i < end; ++i) {
          labels[i] = static_cast<uint16_t>(best[i - begin][0]);
        }
        done += end - begin;
      },
      kBlockRows, tell);
  tell();
}

}  // namespace

Clusters cluster_rows(ByteRows rows, const NearestCentroids& centroids, size_t threads,
                      const Tick& tick, const BuildDevice* device) {
  std::vector<uint16_t> labels(rows.n);
  if (device != nullptr) {
    device->label(rows, centroids, labels.data(), tick);
  } else {
    label_rows(rows, centroids, threads, tick, labels.data());
  }

  Clusters out;
  out.starts.assign(centroids.size() + 1, 0);
  for (const uint16_t label : labels) {
    ++out.starts[label + size_t{1}];
  }
  for (size_t c = 0; c < centroids.size(); ++c) {
    out.starts[c + 1] += out.starts[c];
  }
  std::vector<size_t> next(out.starts.begin(), out.starts.end() - 1);
  out.members.resize(rows.n);
  for (size_t i = 0; i < rows.n; ++i) {
    out.members[next[labels[i]]++] = static_cast<uint32_t>(i);
  }
  return out;
}

AlignedBuffer<int8_t> gather_rows(ByteRows rows, std::span<const uint32_t> numbers) {
  AlignedBuffer<int8_t> out(numbers.size() * rows.dim);
  for (size_t i = 0; i < numbers.size(); ++i) {
    std::copy_n(rows.row(numbers[i]), rows.dim, out.data() + i * rows.dim);
  }
  return out;
}

double scatter(ByteRows rows, std::span<const uint32_t> numbers) {
  if (numbers.empty()) {
    return 0.0;
  }
  std::vector<int64_t> sums(rows.dim);
  add_rows(rows, numbers, sums);
  int64_t squares = 0;
  for (const uint32_t number : numbers) {
    squares += squared_length(rows.row(number), rows.dim);
  }
  double mean_square = 0.0;
  for (const int64_t sum : sums) {
    mean_square += static_cast<double>(sum) * static_cast<double>(sum);
  }
  mean_square /= static_cast<double>(numbers.size());
  return std::max(0.0, static_cast<double>(squares) - mean_square);
}

AlignedBuffer<int8_t> kmeans(const kernels::Kernels& kernel, ByteRows rows,
                             const KMeansParams& params, const Tick& tick, ByteRows fixed) {
  const size_t n = fixed.n + params.n_clusters;
  AlignedBuffer<int8_t> centroids(n * rows.dim);
  std::copy_n(fixed.data, fixed.n * rows.dim, centroids.data());
  AscendingDraw draw(rows.n, params.n_clusters, Random(params.seed, params.stream));
  for (size_t c = fixed.n; c < n; ++c) {
    std::copy_n(rows.row(draw.next()), rows.dim, centroids.data() + c * rows.dim);
  }
  for (unsigned round = 0; round < params.iterations; ++round) {
    const NearestCentroids nearest(kernel, {centroids.data(), n, rows.dim});
    const Clusters clusters = cluster_rows(rows, nearest, params.threads, tick, params.device);
    parallel_for(
        params.n_clusters, params.threads,
        [&](size_t begin, size_t end, size_t) {
          for (size_t c = fixed.n + begin; c < fixed.n + end; ++c) {
            if (!clusters[c].empty()) {
              round_mean(rows, clusters[c], centroids.data() + c * rows.dim);
            }
          }
        },
        64);
    fill_empty(rows, clusters, fixed.n, params.threads, centroids);
  }
  AlignedBuffer<int8_t> means(params.n_clusters * rows.dim);
  std::copy_n(centroids.data() + fixed.n * rows.dim, means.size(), means.data());
  return means;
}

}  // namespace weft
