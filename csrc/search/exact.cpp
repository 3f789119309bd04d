// SPDX-License-Identifier: Apache-2.0
#include "search/exact.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>

#include "kernels/dispatch.h"

namespace weft {

namespace {

/// Kernels read whole vectors: up to so many floats behind the last row.
constexpr size_t kReadAhead = 15;

constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr size_t kRowsAtOnce = 256;

struct BadRow {
  size_t row;
  const char* what;
};

/// The first row that is not finite, or all zero: read by its bits, a tenth of what scoring it costs.
template <class Value>
std::optional<BadRow> bad_row(MatrixView<const Value> rows) {
  using Bits = std::conditional_t<sizeof(Value) == 2, uint16_t, uint32_t>;
  constexpr Bits kExponent = sizeof(Value) == 2 ? 0x7c00 : 0x7f80'0000;
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  for (size_t i = 0; i < rows.rows; ++i) {
    const Value* row = rows.row(i);
    Bits any = 0, endless = 0;
    for (size_t d = 0; d < rows.cols; ++d) {
      const auto bits = std::bit_cast<Bits>(row[d]);
      any |= bits;
      endless |= static_cast<Bits>((bits & kExponent) == kExponent ? 1 : 0);
    }
    if (endless != 0) {
      return BadRow{i, "NaN or infinite"};
    }
    if ((any & kMagnitude) == 0) {
      return BadRow{i, "all zero"};
    }
  }
  return std::nullopt;
}

/// Sum over the first n lanes, in lane order.
float sum_lanes(const float* best, size_t n) {
  float sum = 0.0f;
  for (size_t i = 0; i < n; ++i) {
    sum += best[i];
  }
  return sum;
}

float score_rows(const kernels::Kernels& kernel, const kernels::FloatTile& tile, size_t n_tokens,
                 MatrixView<const float> rows, AlignedBuffer<float>& best) {
  if (rows.rows == 0) {
    return kNothing;
  }
  std::fill_n(best.data(), tile.lanes(), kNothing);
  kernel.maxsim_rows(tile, rows.data, rows.stride, rows.rows, best.data());
  return sum_lanes(best.data(), n_tokens);
}

float score_rows(const kernels::Kernels& kernel, const kernels::FloatTile& tile, size_t n_tokens,
                 MatrixView<const uint16_t> rows, AlignedBuffer<float>& wide,
                 AlignedBuffer<float>& best) {
  if (rows.rows == 0) {
    return kNothing;
  }
  std::fill_n(best.data(), tile.lanes(), kNothing);
  for (size_t done = 0; done < rows.rows; done += kRowsAtOnce) {
    const size_t n = std::min(kRowsAtOnce, rows.rows - done);
    for (size_t i = 0; i < n; ++i) {
      kernel.half_to_float(rows.row(done + i), rows.cols, wide.data() + i * rows.cols);
    }
    kernel.maxsim_rows(tile, wide.data(), rows.cols, n, best.data());
  }
  return sum_lanes(best.data(), n_tokens);
}

size_t padded(size_t dim) { return (dim + 31) / 32 * 32; }

/// Rows as int8 with one scale, and how far each row is from what its int8 stands for.
struct RoundedRows {
  AlignedBuffer<int8_t> bytes;
  float scale = 0.0f;
  float largest_error = 0.0f;
  float error_sum = 0.0f;
  float longest = 0.0f;
  float length_sum = 0.0f;

  void set(const kernels::Kernels& kernel, const float* rows, size_t n, size_t dim) {
    const size_t wide = padded(dim);
    if (bytes.size() < n * wide) {
      bytes.resize(n * wide);
    }
    float widest = 0.0f;
    for (size_t i = 0; i < n * dim; ++i) {
      widest = std::max(widest, std::fabs(rows[i]));
    }
    scale = widest / 127.0f;
    largest_error = error_sum = longest = length_sum = 0.0f;
    for (size_t i = 0; i < n; ++i) {
      const float* row = rows + i * dim;
      int8_t* out = bytes.data() + i * wide;
      kernel.to_int8(row, dim, widest > 0.0f ? 127.0f / widest : 0.0f, out);
      std::fill(out + dim, out + wide, int8_t{0});
      float error = 0.0f, length = 0.0f;
      for (size_t d = 0; d < dim; ++d) {
        const float gap = row[d] - scale * static_cast<float>(out[d]);
        error += gap * gap;
        length += row[d] * row[d];
      }
      error = std::sqrt(error);
      length = std::sqrt(length);
      largest_error = std::max(largest_error, error);
      longest = std::max(longest, length);
      error_sum += error;
      length_sum += length;
    }
  }
};

}  // namespace

void maxsim(MatrixView<const float> query, const ExactRows& docs, std::span<float> scores,
            size_t threads, const std::function<bool()>& poll) {
  const kernels::Kernels& kernel = kernels::active();
  std::atomic<size_t> first_bad = docs.size();
  const auto note_bad = [&](size_t doc) {
    size_t known = first_bad.load();
    while (doc < known && !first_bad.compare_exchange_weak(known, doc)) {
    }
  };
  const FloatTileBuffer tile(query);
  const size_t workers = threads == 0 ? default_threads() : threads;
  struct Scratch {
    AlignedBuffer<float> best, wide;
  };
  std::vector<Scratch> scratch(workers);
  parallel_for(
      docs.size(), threads,
      [&](size_t begin, size_t end, size_t worker) {
        Scratch& mine = scratch[worker];
        mine.best.resize(tile.view().lanes());
        for (size_t i = begin; i < end; ++i) {
          const bool halves = docs.f32.offsets.empty();
          if (halves ? bad_row(docs.f16[i]) : bad_row(docs.f32[i])) {
            note_bad(i);
          } else if (halves) {
            mine.wide.resize(kRowsAtOnce * query.cols);
            scores[i] =
                score_rows(kernel, tile.view(), query.rows, docs.f16[i], mine.wide, mine.best);
          } else {
            scores[i] = score_rows(kernel, tile.view(), query.rows, docs.f32[i], mine.best);
          }
        }
      },
      16, poll);
  if (const size_t doc = first_bad.load(); doc < docs.size()) {
    const auto bad = docs.f32.offsets.empty() ? bad_row(docs.f16[doc]) : bad_row(docs.f32[doc]);
    throw Error(ErrorCode::invalid_argument,
                concat("document ", doc, ", row ", bad->row, ": ", bad->what,
                       ", expected finite values, not all zero"));
  }
}

Truth::Truth(RaggedView<const float> queries, size_t k, size_t threads)
    : dim_(queries.tokens.cols), k_(k), threads_(threads == 0 ? default_threads() : threads) {
  WEFT_REQUIRE(k >= 1, ErrorCode::invalid_argument, "k=0: expected at least 1");
  const kernels::Kernels& kernel = kernels::active();
  for (size_t q = 0; q < queries.size(); ++q) {
    const MatrixView<const float> rows = queries[q];
    WEFT_REQUIRE(rows.rows > 0, ErrorCode::invalid_argument, "query ", q,
                 " is empty: expected at least one token");
    std::vector<float> dense(rows.rows * dim_ + kReadAhead);
    for (size_t i = 0; i < rows.rows; ++i) {
      std::copy_n(rows.row(i), dim_, dense.data() + i * dim_);
    }
    RoundedRows bytes;
    bytes.set(kernel, dense.data(), rows.rows, dim_);
    queries_.push_back({FloatTileBuffer(rows),
                        ByteTileBuffer({bytes.bytes.data(), rows.rows, padded(dim_), padded(dim_)}),
                        rows.rows, bytes.scale, bytes.length_sum, bytes.error_sum});
  }
  tops_.assign(threads_, std::vector<TopK>(queries_.size(), TopK(k_)));
}

void Truth::scan(RaggedView<const uint16_t> docs, uint64_t first_doc,
                 const std::function<bool()>& poll) {
  const kernels::Kernels& kernel = kernels::active();
  struct Scratch {
    AlignedBuffer<float> best, wide;
    AlignedBuffer<int32_t> dots;
    RoundedRows bytes;
  };
  std::vector<Scratch> scratch(threads_);
  const auto visit = [&](size_t i, std::vector<TopK>& tops, Scratch& mine) {
    const MatrixView<const uint16_t> rows = docs[i];
    if (rows.rows == 0) {
      return;
    }
    if (mine.wide.size() < rows.rows * dim_ + kReadAhead) {
      mine.wide.resize(rows.rows * dim_ + kReadAhead);
    }
    for (size_t t = 0; t < rows.rows; ++t) {
      kernel.half_to_float(rows.row(t), dim_, mine.wide.data() + t * dim_);
    }
    mine.bytes.set(kernel, mine.wide.data(), rows.rows, dim_);
    for (size_t q = 0; q < queries_.size(); ++q) {
      const Query& query = queries_[q];
      const kernels::ByteTile tile = query.bytes.view();
      const size_t lanes = tile.lanes();
      if (mine.best.size() < lanes) {
        mine.best.resize(lanes);
      }
      if (tops[q].full()) {
        // q.x = q'.x' + q'.(x - x') + (q - q').x, so |error| <= |q'||x - x'| + |q - q'||x|.
        if (mine.dots.size() < rows.rows * lanes) {
          mine.dots.resize(rows.rows * lanes);
        }
        kernel.tile_dots(tile, mine.bytes.bytes.data(), rows.rows, mine.dots.data());
        int32_t* tops_of_lane = mine.dots.data();  // the first row becomes the maxima
        for (size_t t = 1; t < rows.rows; ++t) {
          const int32_t* dots = mine.dots.data() + t * lanes;
          for (size_t lane = 0; lane < lanes; ++lane) {
            tops_of_lane[lane] = std::max(tops_of_lane[lane], dots[lane]);
          }
        }
        const int64_t sum =
            std::accumulate(tops_of_lane, tops_of_lane + query.n_tokens, int64_t{0});
        const float estimate = static_cast<float>(sum) * query.scale * mine.bytes.scale;
        const float error = (query.length_sum + query.error_sum) * mine.bytes.largest_error +
                            query.error_sum * mine.bytes.longest +
                            1e-4f * query.length_sum * mine.bytes.longest;
        if (estimate + error < tops[q].threshold()) {
          continue;
        }
      }
      const float score = score_rows(kernel, query.exact.view(), query.n_tokens,
                                     {mine.wide.data(), rows.rows, dim_, dim_}, mine.best);
      tops[q].push(score, first_doc + i);
    }
  };
  parallel_for(
      docs.size(), threads_,
      [&](size_t begin, size_t end, size_t worker) {
        for (size_t i = begin; i < end; ++i) {
          visit(i, tops_[worker], scratch[worker]);
        }
      },
      8, poll);
}

std::vector<std::pair<float, uint64_t>> Truth::result(size_t query) const {
  TopK all(k_);
  for (const auto& tops : tops_) {
    TopK copy = tops[query];
    for (const auto& [score, doc] : copy.take_sorted()) {
      all.push(score, doc);
    }
  }
  return all.take_sorted();
}

}  // namespace weft
