// SPDX-License-Identifier: Apache-2.0
#include "quantizer/centroid_tree.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <queue>

#include "base/error.h"
#include "kernels/dispatch.h"
#include "quantizer/tile.h"

namespace weft {

namespace {

constexpr size_t kTokensPerCentroid = 128;  // of the sample, for the coarse level
constexpr size_t kCellsSearched =
    4;  // measured: 1.5 % smaller residual than the nearest cell alone
constexpr size_t kTileRows = 128;

/// Counts rows and tells them as progress of one stage.
class StageProgress {
 public:
  StageProgress(const Progress& progress, const char* stage, uint64_t total)
      : progress_(progress), stage_(stage), total_(total) {}

  void add(uint64_t rows) {
    done_ += rows;
    if (progress_) {
      progress_(stage_, done_, total_);
    }
  }

 private:
  const Progress& progress_;
  const char* stage_;
  uint64_t total_;
  uint64_t done_ = 0;
};

/// Children per cell: one each, then one at a time to the cell where weight / (2 * children + 1) is
/// largest, which keeps the counts as close to proportional as whole numbers can be.
std::vector<uint32_t> share_children(const Clusters& cells, std::span<const double> weights,
                                     uint32_t n_fine) {
  struct Bid {
    double value;
    uint32_t cell;
    bool operator<(const Bid& other) const {
      return value != other.value ? value < other.value : cell > other.cell;
    }
  };
  std::vector<uint32_t> counts(cells.size(), 1);
  std::priority_queue<Bid> bids;
  const auto bid = [&](uint32_t cell) {
    if (counts[cell] < std::min<size_t>(kMaxChildren, cells[cell].size()) && weights[cell] > 0.0) {
      bids.push({weights[cell] / (2.0 * counts[cell] + 1.0), cell});
    }
  };
  for (uint32_t cell = 0; cell < cells.size(); ++cell) {
    bid(cell);
  }
  for (size_t left = n_fine - cells.size(); left > 0 && !bids.empty(); --left) {
    const uint32_t cell = bids.top().cell;
    bids.pop();
    ++counts[cell];
    bid(cell);
  }
  return counts;
}

}  // namespace

CentroidTree::CentroidTree(TreeArrays arrays, double coarse_unit, double fine_unit)
    : arrays_(std::move(arrays)),
      nearest_({arrays_.coarse.data(), arrays_.child_offsets.size() - 1, arrays_.dim}, coarse_unit),
      fine_bias_(arrays_.child_offsets.back()) {
  longest_fine_ = distance_biases(fine(), fine_unit, fine_bias_.data());
}

TreeArrays CentroidTree::train(ByteRows sample, const TreeParams& params,
                               const Progress& progress) {
  WEFT_REQUIRE(params.n_coarse >= 1 && params.n_coarse <= std::min<size_t>(kMaxCoarse, sample.n) &&
                   params.n_fine >= params.n_coarse && sample.n <= UINT32_MAX,
               ErrorCode::invalid_argument, "centroid tree: n_coarse=", params.n_coarse,
               ", n_fine=", params.n_fine, " do not suit ", sample.n, " sampled tokens");
  const kernels::Kernels& kernel = kernels::active();
  const size_t dim = sample.dim;
  TreeArrays out;
  out.dim = dim;

  std::vector<uint32_t> all(sample.n);
  std::iota(all.begin(), all.end(), 0u);
  std::vector<uint32_t> some;
  AscendingDraw draw(sample.n, std::min(sample.n, kTokensPerCentroid * params.n_coarse),
                     Random(params.seed, 1));
  some.reserve(draw.left());
  while (draw.left() > 0) {
    some.push_back(static_cast<uint32_t>(draw.next()));
  }
  StageProgress coarse(progress, "coarse", params.iterations * some.size() + sample.n);
  const Tick coarse_tick = [&](uint64_t rows) { coarse.add(rows); };
  out.coarse = kmeans(kernel, sample, some,
                      {.n_clusters = params.n_coarse,
                       .iterations = params.iterations,
                       .seed = params.seed,
                       .stream = 2,
                       .threads = params.threads},
                      coarse_tick);
  const Clusters cells =
      cluster_rows(kernel, sample, all, NearestCentroids({out.coarse.data(), params.n_coarse, dim}),
                   params.threads, coarse_tick);

  std::vector<double> weights(cells.size());
  parallel_for(
      cells.size(), params.threads,
      [&](size_t begin, size_t end, size_t) {
        for (size_t cell = begin; cell < end; ++cell) {
          weights[cell] = std::sqrt(scatter(sample, cells[cell]));
        }
      },
      16);
  const std::vector<uint32_t> counts = share_children(cells, weights, params.n_fine);
  out.child_offsets.assign(cells.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), out.child_offsets.begin() + 1);
  out.fine.resize(size_t{out.child_offsets.back()} * dim);

  StageProgress fine(progress, "fine", sample.n);
  std::atomic<uint64_t> done = 0;
  uint64_t told = 0;
  const auto tell = [&] {
    const uint64_t now = done.load();
    fine.add(now - told);
    told = now;
    return false;
  };
  parallel_for(
      cells.size(), params.threads,
      [&](size_t begin, size_t end, size_t) {
        for (size_t cell = begin; cell < end; ++cell) {
          int8_t* children = out.fine.data() + size_t{out.child_offsets[cell]} * dim;
          if (cells[cell].empty()) {
            std::copy_n(out.coarse.data() + cell * dim, dim, children);
            continue;
          }
          const AlignedBuffer<int8_t> means = kmeans(kernel, sample, cells[cell],
                                                     {.n_clusters = counts[cell],
                                                      .iterations = params.iterations,
                                                      .seed = params.seed,
                                                      .stream = 3 + cell,
                                                      .threads = 1});
          std::copy_n(means.data(), counts[cell] * dim, children);
          done += cells[cell].size();
        }
      },
      1, tell);
  tell();
  return out;
}

void CentroidTree::assign(const kernels::Kernels& kernel, ByteRows tokens, uint16_t* parents,
                          uint8_t* children) const {
  ByteTileBuffer tile;
  AlignedBuffer<int32_t> keys(4 * kTileRows);
  int32_t dots[kMaxChildren];
  const size_t n_cells = std::min(kCellsSearched, nearest_.size());
  for (size_t first = 0; first < tokens.n; first += kTileRows) {
    const size_t count = std::min(kTileRows, tokens.n - first);
    tile.resize(count, tokens.dim);
    for (size_t i = 0; i < count; ++i) {
      tile.set_row(i, tokens.row(first + i));
    }
    const kernels::ByteTile view = tile.view();
    nearest_.find(kernel, view, keys.data());
    for (size_t i = 0; i < count; ++i) {
      int32_t best = INT32_MIN;
      for (size_t place = 0; place < n_cells; ++place) {
        const uint32_t cell = NearestCentroids::centroid_of(keys[place * view.lanes() + i]);
        const uint32_t begin = arrays_.child_offsets[cell];
        const uint32_t size = arrays_.child_offsets[cell + size_t{1}] - begin;
        kernel.row_dots(tokens.row(first + i), arrays_.fine.data() + size_t{begin} * arrays_.dim,
                        size, arrays_.dim, dots);
        for (uint32_t child = 0; child < size; ++child) {
          const int32_t value = dots[child] + fine_bias_[begin + child];
          if (value > best) {
            best = value;
            parents[first + i] = static_cast<uint16_t>(cell);
            children[first + i] = static_cast<uint8_t>(child);
          }
        }
      }
    }
  }
}

}  // namespace weft
