// SPDX-License-Identifier: Apache-2.0
#include "quantizer/nearest.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "quantizer/kmeans.h"

namespace weft {

namespace {

constexpr size_t kTileRows = 128;  // 16 KiB at dim 128: a tile stays in the first-level cache
constexpr size_t kGroupedFrom = 2'048;
constexpr size_t kQuarters = 4;
constexpr double kLargestBias = 0x1p27;

}  // namespace

double distance_biases(ByteRows centroids, double unit, int32_t* bias) {
  int32_t longest = 0;
  for (size_t i = 0; i < centroids.n; ++i) {
    const int8_t* row = centroids.row(i);
    int32_t squared = 0;
    for (size_t d = 0; d < centroids.dim; ++d) {
      squared += row[d] * row[d];
    }
    longest = std::max(longest, squared);
    bias[i] = -static_cast<int32_t>(std::min(std::round(0.5 * unit * squared), kLargestBias));
  }
  return std::sqrt(static_cast<double>(longest));
}

NearestCentroids::NearestCentroids(const kernels::Kernels& kernel, ByteRows centroids, double unit)
    : kernel_(&kernel),
      dim_(centroids.dim),
      rows_(centroids.n * centroids.dim),
      bias_(centroids.n),
      numbers_(centroids.n) {
  std::iota(numbers_.begin(), numbers_.end(), 0u);
  starts_ = {0, centroids.n};
  if (centroids.n >= kGroupedFrom) {
    const auto quarter =
        static_cast<size_t>(std::sqrt(static_cast<double>(centroids.n))) * 2 / kQuarters;
    const size_t n_groups = quarter * kQuarters;
    const AlignedBuffer<int8_t> means =
        kmeans(kernel, centroids, {.n_clusters = n_groups, .iterations = 6});
    const ByteRows mean_rows{means.data(), n_groups, dim_};
    const NearestCentroids groups(kernel, mean_rows);
    Clusters clusters = cluster_rows(centroids, groups, 1);
    numbers_ = std::move(clusters.members);
    starts_ = std::move(clusters.starts);
    for (size_t first = 0; first < n_groups; first += quarter) {
      quarters_.emplace_back(kernel, ByteRows{mean_rows.row(first), quarter, dim_});
    }
  }
  for (size_t i = 0; i < numbers_.size(); ++i) {
    std::copy_n(centroids.row(numbers_[i]), dim_, rows_.data() + i * dim_);
  }
  longest_ = distance_biases({rows_.data(), numbers_.size(), dim_}, unit, bias_.data());
  // |dot| <= |x| |c| and |x| <= 127 sqrt(dim): after the shift every value fits an int16.
  const int32_t lowest = *std::min_element(bias_.data(), bias_.data() + bias_.size());
  const double reach = 127.0 * std::sqrt(static_cast<double>(dim_)) * longest_ - lowest;
  shift_ = static_cast<unsigned>(std::bit_width(static_cast<uint32_t>(reach) >> 15));
}

/// Rows on the way through find().
struct NearestCentroids::Block {
  ByteRows rows;
  std::vector<int32_t> sums;
  std::vector<Keys> keys;
  ByteTileBuffer tile;
};

/// Compares the rows `which` with the centroids begin..end-1 of rows_.
void NearestCentroids::compare(size_t begin, size_t end, std::span<const uint32_t> which,
                               Block& block) const {
  alignas(64) int32_t lane_keys[4 * kTileRows];
  for (size_t first = 0; first < which.size(); first += kTileRows) {
    const auto part = which.subspan(first, std::min(kTileRows, which.size() - first));
    block.tile.resize(part.size(), dim_);
    const kernels::ByteTile tile = block.tile.view();
    const size_t lanes = tile.lanes();
    std::fill_n(lane_keys, 4 * lanes, INT32_MIN);
    for (size_t i = 0; i < part.size(); ++i) {
      block.tile.set_row(i, block.rows.row(part[i]), block.sums[part[i]]);
      for (size_t place = 0; place < 4; ++place) {
        lane_keys[place * lanes + i] = block.keys[part[i]][place];
      }
    }
    kernel_->nearest(tile, rows_.data() + begin * dim_, bias_.data() + begin, end - begin,
                     static_cast<uint32_t>(begin), shift_, lane_keys);
    for (size_t i = 0; i < part.size(); ++i) {
      for (size_t place = 0; place < 4; ++place) {
        block.keys[part[i]][place] = lane_keys[place * lanes + i];
      }
    }
  }
}

void NearestCentroids::find(ByteRows rows, BestFour* best) const {
  const size_t n = rows.n;
  const size_t n_groups = starts_.size() - 1;
  Block block{rows,
              std::vector<int32_t>(n),
              std::vector<Keys>(n, {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN}),
              {}};
  AlignedBuffer<int8_t> ones(dim_);
  std::fill_n(ones.data(), dim_, int8_t{1});
  kernel_->row_dots(ones.data(), rows.data, n, dim_, block.sums.data());
  if (quarters_.empty()) {
    std::vector<uint32_t> all(n);
    std::iota(all.begin(), all.end(), 0u);
    compare(0, size(), all, block);
  } else {
    // Rows by group, so that a group's centroids meet full tiles.
    std::vector<BestFour> groups(kQuarters * n);
    std::vector<size_t> ends(n_groups + 1);
    const size_t quarter = n_groups / kQuarters;
    for (size_t q = 0; q < kQuarters; ++q) {
      quarters_[q].find(rows, groups.data() + q * n);
      for (size_t i = q * n; i < (q + 1) * n; ++i) {
        for (uint32_t& group : groups[i]) {
          group += static_cast<uint32_t>(q * quarter);
          ++ends[group + 1];
        }
      }
    }
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    std::vector<uint32_t> members(ends.back());
    for (size_t i = 0; i < kQuarters * n; ++i) {
      for (const uint32_t group : groups[i]) {
        members[ends[group]++] = static_cast<uint32_t>(i % n);
      }
    }
    size_t begin = 0;
    for (size_t group = 0; group < n_groups; ++group) {
      compare(starts_[group], starts_[group + 1],
              std::span(members).subspan(begin, ends[group] - begin), block);
      begin = ends[group];
    }
  }
  const size_t n_places = std::min<size_t>(4, size());
  for (size_t i = 0; i < n; ++i) {
    for (size_t place = 0; place < n_places; ++place) {
      best[i][place] = numbers_[0xffffu - (static_cast<uint32_t>(block.keys[i][place]) & 0xffffu)];
    }
  }
}

}  // namespace weft
