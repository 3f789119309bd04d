// SPDX-License-Identifier: Apache-2.0
#include "quantizer/centroid_tree.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>
#include <queue>
#include <tuple>

#include "base/error.h"
#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr size_t kTokensPerCentroid = 128;  // of the sample, for the coarse level
// A token looks at the children of its four nearest cells: measured, 1.5 % smaller residuals than with
// the nearest cell alone.
constexpr size_t kCellsSearched = std::tuple_size_v<BestFour>;

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

/// What cells get: `least` each, then `left` more, one at a time to the cell where weight / (2 * count + 1)
/// is largest, which keeps the counts as close to proportional as whole numbers can be. No cell gets more
/// than there is room for.
std::vector<uint32_t> share(std::span<const double> weights, std::span<const uint32_t> room,
                            uint32_t least, size_t left) {
  struct Bid {
    double value;
    uint32_t cell;
    bool operator<(const Bid& other) const {
      return value != other.value ? value < other.value : cell > other.cell;
    }
  };
  std::vector<uint32_t> counts(weights.size(), least);
  std::priority_queue<Bid> bids;
  const auto bid = [&](uint32_t cell) {
    if (counts[cell] < room[cell] && weights[cell] > 0.0) {
      bids.push({weights[cell] / (2.0 * counts[cell] + 1.0), cell});
    }
  };
  for (uint32_t cell = 0; cell < weights.size(); ++cell) {
    bid(cell);
  }
  for (; left > 0 && !bids.empty(); --left) {
    const uint32_t cell = bids.top().cell;
    bids.pop();
    ++counts[cell];
    bid(cell);
  }
  return counts;
}

int32_t squared_length(const int8_t* row, size_t dim) {
  int32_t sum = 0;
  for (size_t d = 0; d < dim; ++d) {
    sum += row[d] * row[d];
  }
  return sum;
}

int8_t* children_of(TreeArrays& tree, size_t cell) {
  return tree.fine.data() + size_t{tree.child_offsets[cell]} * tree.dim;
}

/// Trains counts[cell] children of every cell on its tokens, behind those that begin(cell) has put there
/// and gives back: these stay as they are.
void train_cells(const char* stage, ByteRows sample, const Clusters& cells,
                 std::span<const uint32_t> counts, const TreeParams& params,
                 const Progress& progress, TreeArrays& out,
                 const std::function<ByteRows(size_t)>& begin_cell) {
  StageProgress told_stage(progress, stage, sample.n);
  std::atomic<uint64_t> done = 0;
  uint64_t told = 0;
  const auto tell = [&] {
    const uint64_t now = done.load();
    told_stage.add(now - told);
    told = now;
    return false;
  };
  parallel_for(
      cells.size(), params.threads,
      [&](size_t begin, size_t end, size_t) {
        for (size_t cell = begin; cell < end; ++cell) {
          const ByteRows there = begin_cell(cell);
          if (!cells[cell].empty() && counts[cell] > 0) {
            const AlignedBuffer<int8_t> tokens = gather_rows(sample, cells[cell]);
            const AlignedBuffer<int8_t> means =
                kmeans(kernels::active(), {tokens.data(), cells[cell].size(), out.dim},
                       {.n_clusters = counts[cell],
                        .iterations = params.iterations,
                        .seed = params.seed,
                        .stream = 3 + cell,
                        .threads = 1},
                       {}, there);
            std::ranges::copy(means.span(), children_of(out, cell) + there.n * out.dim);
          }
          done += cells[cell].size();
        }
      },
      1, tell);
  tell();
}

}  // namespace

CentroidTree::CentroidTree(TreeArrays arrays, double coarse_unit, double fine_unit)
    : arrays_(std::move(arrays)),
      nearest_(kernels::active(),
               {arrays_.coarse.data(), arrays_.child_offsets.size() - 1, arrays_.dim}, coarse_unit),
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

  std::vector<uint32_t> drawn;
  AscendingDraw draw(sample.n, std::min(sample.n, kTokensPerCentroid * params.n_coarse),
                     Random(params.seed, 1));
  while (draw.left() > 0) {
    drawn.push_back(static_cast<uint32_t>(draw.next()));
  }
  StageProgress coarse(progress, "coarse", params.iterations * drawn.size() + sample.n);
  const Tick coarse_tick = [&](uint64_t rows) { coarse.add(rows); };
  {
    const bool everything = drawn.size() == sample.n;
    const auto part = everything ? AlignedBuffer<int8_t>() : gather_rows(sample, drawn);
    out.coarse = kmeans(kernel, everything ? sample : ByteRows{part.data(), drawn.size(), dim},
                        {.n_clusters = params.n_coarse,
                         .iterations = params.iterations,
                         .seed = params.seed,
                         .stream = 2,
                         .threads = params.threads,
                         .device = params.device},
                        coarse_tick);
  }
  const NearestCentroids nearest(kernel, {out.coarse.data(), params.n_coarse, dim});
  const Clusters cells = cluster_rows(sample, nearest, params.threads, coarse_tick, params.device);

  std::vector<double> weights(cells.size());
  parallel_for(
      cells.size(), params.threads,
      [&](size_t begin, size_t end, size_t) {
        for (size_t cell = begin; cell < end; ++cell) {
          weights[cell] = std::sqrt(scatter(sample, cells[cell]));
        }
      },
      16);
  std::vector<uint32_t> room(cells.size());
  for (size_t cell = 0; cell < cells.size(); ++cell) {
    room[cell] = static_cast<uint32_t>(std::min<size_t>(kMaxChildren, cells[cell].size()));
  }
  const std::vector<uint32_t> counts = share(weights, room, 1, params.n_fine - cells.size());
  out.child_offsets.assign(cells.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), out.child_offsets.begin() + 1);
  out.fine.resize(size_t{out.child_offsets.back()} * dim);

  train_cells("fine", sample, cells, counts, params, progress, out, [&](size_t cell) {
    if (cells[cell].empty()) {
      std::copy_n(out.coarse.data() + cell * dim, dim, children_of(out, cell));
    }
    return ByteRows{nullptr, 0, dim};
  });
  return out;
}

TreeArrays CentroidTree::grow(ByteRows sample, uint32_t n_more, const TreeParams& params,
                              const Progress& progress) const {
  const kernels::Kernels& kernel = kernels::active();
  const size_t dim = arrays_.dim;
  const auto& offsets = arrays_.child_offsets;
  const Clusters cells = cluster_rows(sample, nearest_, params.threads, {}, params.device);

  // What the children there are leave over, of the tokens of each cell.
  std::vector<double> weights(cells.size());
  std::vector<uint32_t> room(cells.size());
  parallel_for(
      cells.size(), params.threads,
      [&](size_t begin, size_t end, size_t) {
        int32_t dots[kMaxChildren];
        for (size_t cell = begin; cell < end; ++cell) {
          const uint32_t first = offsets[cell], size = offsets[cell + 1] - first;
          int64_t sum = 0;
          for (const uint32_t i : cells[cell]) {
            kernel.row_dots(sample.row(i), fine().row(first), size, dim, dots);
            int32_t best = INT32_MIN;
            for (uint32_t child = 0; child < size; ++child) {
              best = std::max(best, dots[child] + fine_bias_[first + child]);
            }
            sum += std::max(0, squared_length(sample.row(i), dim) - 2 * best);
          }
          weights[cell] = std::sqrt(static_cast<double>(sum));
          room[cell] =
              static_cast<uint32_t>(std::min<size_t>(kMaxChildren - size, cells[cell].size()));
        }
      },
      16);
  const std::vector<uint32_t> counts = share(weights, room, 0, n_more);

  TreeArrays out;
  out.dim = dim;
  out.coarse.resize(arrays_.coarse.size());
  std::ranges::copy(arrays_.coarse.span(), out.coarse.data());
  out.child_offsets.assign(cells.size() + 1, 0);
  for (size_t cell = 0; cell < cells.size(); ++cell) {
    out.child_offsets[cell + 1] =
        out.child_offsets[cell] + offsets[cell + 1] - offsets[cell] + counts[cell];
  }
  out.fine.resize(size_t{out.child_offsets.back()} * dim);
  train_cells("grow", sample, cells, counts, params, progress, out, [&](size_t cell) {
    const ByteRows old{fine().row(offsets[cell]), offsets[cell + 1] - offsets[cell], dim};
    std::copy_n(old.data, old.n * dim, children_of(out, cell));
    return old;
  });
  return out;
}

void CentroidTree::assign(const kernels::Kernels& kernel, ByteRows tokens, uint16_t* parents,
                          uint8_t* children, uint32_t* distances) const {
  struct Best {
    int32_t value = INT32_MIN;
    uint32_t place = 0;
  };
  const size_t n_cells = std::min(kCellsSearched, nearest_.size());
  std::vector<BestFour> cells(tokens.n);
  nearest_.find(tokens, cells.data());

  // Cell by cell: then the children, most of a codec, are read once for all tokens and in order.
  std::vector<uint32_t> ends(nearest_.size() + 1);
  for (const BestFour& of_token : cells) {
    for (size_t place = 0; place < n_cells; ++place) {
      ++ends[of_token[place] + size_t{1}];
    }
  }
  std::partial_sum(ends.begin(), ends.end(), ends.begin());
  std::vector<uint32_t> visits(ends.back());  // token * 4 + place
  for (uint32_t i = 0; i < tokens.n; ++i) {
    for (uint32_t place = 0; place < n_cells; ++place) {
      visits[ends[cells[i][place]]++] = i * 4 + place;
    }
  }
  std::vector<Best> best(tokens.n);
  int32_t dots[kMaxChildren];
  size_t at = 0;
  for (size_t cell = 0; cell < nearest_.size(); ++cell) {
    const uint32_t begin = arrays_.child_offsets[cell];
    const uint32_t size = arrays_.child_offsets[cell + 1] - begin;
    for (; at < ends[cell]; ++at) {
      const uint32_t i = visits[at] / 4;
      const uint32_t place = visits[at] % 4;
      kernel.row_dots(tokens.row(i), arrays_.fine.data() + size_t{begin} * arrays_.dim, size,
                      arrays_.dim, dots);
      for (uint32_t child = 0; child < size; ++child) {
        const int32_t value = dots[child] + fine_bias_[begin + child];
        if (value > best[i].value || (value == best[i].value && place < best[i].place)) {
          best[i] = {value, place};
          parents[i] = static_cast<uint16_t>(cell);
          children[i] = static_cast<uint8_t>(child);
        }
      }
    }
  }
  for (size_t i = 0; distances != nullptr && i < tokens.n; ++i) {
    const int32_t squared = squared_length(tokens.row(i), tokens.dim) - 2 * best[i].value;
    distances[i] = static_cast<uint32_t>(std::max(0, squared));
  }
}

}  // namespace weft
