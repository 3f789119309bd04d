// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/dispatch.h"
#include "quantizer/codec.h"
#include "quantizer/row_rotator.h"

namespace weft {

namespace {

constexpr size_t kSampleWindow = size_t{1} << 16;  // rows drawn before they are read
constexpr uint64_t kSampleTokensPerFine = 16;
constexpr uint64_t kLeastSamplePerFine = 8;
constexpr uint64_t kTokensPerFine = 50;
constexpr uint32_t kChildrenByRule = 128;
constexpr size_t kMeasuredTokens = size_t{1} << 14;
constexpr uint64_t kMeasuredStream =
    3 + uint64_t{kMaxCoarse};  // those before it are taken by k-means
constexpr size_t kBlockTokens = 4'096;

/// n of the rows, drawn by chance and read in order, rotated and as bytes.
AlignedBuffer<int8_t> sample_rows(const Rotation& rotation, MatrixView<const uint16_t> rows,
                                  size_t n, Random random, size_t threads,
                                  const Progress& progress) {
  const size_t padded = rotation.padded_dim();
  AlignedBuffer<int8_t> sample(n * padded);
  AscendingDraw draw(rows.rows, n, random);
  std::vector<uint64_t> window;
  for (size_t first = 0; first < n; first += window.size()) {
    window.resize(std::min(kSampleWindow, n - first));
    std::ranges::generate(window, [&] { return draw.next(); });
    parallel_for(
        window.size(), threads,
        [&](size_t begin, size_t end, size_t) {
          RowRotator rotate(kernels::active(), rotation);
          AlignedBuffer<float> rotated(padded);
          for (size_t i = begin; i < end; ++i) {
            rotate(rows.row(window[i]), rotated.data(), sample.data() + (first + i) * padded);
          }
        },
        1'024);
    if (progress) {
      progress("sample", first + window.size(), n);
    }
  }
  return sample;
}

void require_sample(size_t n_rows, unsigned iterations, uint64_t max_bytes, size_t padded) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(n_rows >= 1, kBad, "training rows: found none, expected at least 1");
  WEFT_REQUIRE(iterations >= 1, kBad, "iterations=0: expected at least 1");
  WEFT_REQUIRE(max_bytes >= padded, kBad, "max_sample_bytes=", max_bytes,
               ": expected at least one token, ", padded, " bytes");
}
}  // namespace

TreeSize tree_size(uint64_t n_tokens, uint32_t n_coarse, uint32_t n_fine) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(n_coarse <= kMaxCoarse, kBad, "n_coarse=", n_coarse, ": expected 1..", kMaxCoarse);
  const uint64_t wanted = n_fine != 0 ? n_fine : n_tokens / kTokensPerFine;
  uint64_t cells = n_coarse;
  if (cells == 0) {
    const double power = std::round(std::log2(std::sqrt(static_cast<double>(n_tokens))));
    cells = std::clamp<uint64_t>(uint64_t{1} << static_cast<unsigned>(power), 16, kMaxCoarse);
    while (cells < kMaxCoarse && wanted > kChildrenByRule * cells) {
      cells *= 2;
    }
    if (n_fine != 0) {
      cells = std::min<uint64_t>(cells, n_fine);
    }
  }
  WEFT_REQUIRE(n_fine == 0 || (n_fine >= cells && n_fine <= kMaxChildren * cells), kBad,
               "n_fine=", n_fine, ": expected ", cells, "..", kMaxChildren * cells,
               " with n_coarse=", cells);
  const uint64_t most = n_fine != 0 ? n_fine : kChildrenByRule * cells;
  return {static_cast<uint32_t>(cells), static_cast<uint32_t>(std::clamp(wanted, cells, most))};
}

Codec Codec::train(MatrixView<const uint16_t> rows, const CodecParams& params,
                   const Progress& progress) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(params.nbits >= 1 && params.nbits <= 8 && std::has_single_bit(params.nbits), kBad,
               "nbits=", params.nbits, ": expected 1, 2, 4 or 8");
  const Rotation rotation(rows.cols, params.seed);
  const size_t padded = rotation.padded_dim();
  require_sample(rows.rows, params.iterations, params.max_sample_bytes, padded);
  TreeSize size =
      tree_size(params.n_tokens != 0 ? params.n_tokens : rows.rows, params.n_coarse, params.n_fine);
  // What fits into memory is shared by no more centroids than it can tell means of.
  const uint64_t n_sampled = std::min<uint64_t>(rows.rows, params.max_sample_bytes / padded);
  if (params.n_fine == 0) {
    const uint64_t most = std::max<uint64_t>(n_sampled / kLeastSamplePerFine, size.n_coarse);
    size.n_fine = static_cast<uint32_t>(std::min<uint64_t>(size.n_fine, most));
  }
  const uint64_t n_sample = std::min(n_sampled, kSampleTokensPerFine * size.n_fine);
  size.n_coarse = static_cast<uint32_t>(std::min<uint64_t>(size.n_coarse, n_sample));

  const AlignedBuffer<int8_t> sample =
      sample_rows(rotation, rows, n_sample, Random(params.seed, 1), params.threads, progress);
  const float scale = 1.0f / token_scale(padded);
  Codec codec({.dim = rows.cols,
               .nbits = params.nbits,
               .seed = params.seed,
               .n_tokens = params.n_tokens != 0 ? params.n_tokens : rows.rows,
               .coarse_scale = scale,
               .fine_scale = scale,
               .tree = CentroidTree::train({sample.data(), n_sample, padded},
                                           {.n_coarse = size.n_coarse,
                                            .n_fine = size.n_fine,
                                            .iterations = params.iterations,
                                            .seed = params.seed,
                                            .threads = params.threads,
                                            .device = params.device},
                                           progress)});
  std::vector<uint32_t> distances = codec.measure(rows, params.threads);
  const size_t place = (distances.size() * 95 + 99) / 100 - 1;
  std::ranges::nth_element(distances, distances.begin() + static_cast<ptrdiff_t>(place));
  codec.error_ = distances[place];
  codec.checksum_ = codec.digest();
  return codec;
}

Codec Codec::grow(MatrixView<const uint16_t> rows, const GrowParams& params,
                  const Progress& progress) const {
  require_dim(rows);
  require_sample(rows.rows, params.iterations, params.max_sample_bytes, padded_dim());
  const size_t n_most = std::min<uint64_t>(rows.rows, params.max_sample_bytes / padded_dim());
  const auto n_more = static_cast<uint32_t>(
      std::min<uint64_t>(params.n_more, std::max<uint64_t>(n_most / kLeastSamplePerFine, 1)));
  const size_t n_sample = std::min<uint64_t>(n_most, kSampleTokensPerFine * n_more);
  const AlignedBuffer<int8_t> sample =
      sample_rows(rotation_, rows, n_sample, Random(seed_, 1), params.threads, progress);
  CodecParts grown{.dim = dim(),
                   .nbits = nbits_,
                   .seed = seed_,
                   .coarse_scale = coarse_scale_,
                   .fine_scale = fine_scale_,
                   .error = error_,
                   .tree = tree_.grow({sample.data(), n_sample, padded_dim()}, n_more,
                                      {.iterations = params.iterations,
                                       .seed = seed_,
                                       .threads = params.threads,
                                       .device = params.device},
                                      progress)};
  for (const Ancestor& ancestor : ancestors_) {
    if (std::ranges::find(params.used, ancestor.checksum) != params.used.end()) {
      grown.ancestors.push_back(ancestor);
    }
  }
  Ancestor& own = grown.ancestors.emplace_back(Ancestor{checksum_, {}});
  for (size_t cell = 0; cell < n_coarse(); ++cell) {
    own.children.push_back(
        static_cast<uint16_t>(child_offsets()[cell + 1] - child_offsets()[cell]));
  }
  const uint64_t n_fine = grown.tree.child_offsets.back();
  grown.n_tokens = std::max(n_tokens_, std::min(params.n_tokens, kTokensPerFine * n_fine));
  return Codec(std::move(grown));
}

std::vector<uint32_t> Codec::measure(MatrixView<const uint16_t> rows, size_t threads) const {
  require_dim(rows);
  const size_t n = std::min<size_t>(rows.rows, kMeasuredTokens);
  const AlignedBuffer<int8_t> sample =
      sample_rows(rotation_, rows, n, Random(seed_, kMeasuredStream), threads, {});
  std::vector<uint32_t> distances(n);
  parallel_for(
      n, threads,
      [&](size_t begin, size_t end, size_t) {
        std::vector<uint16_t> parents(end - begin);
        std::vector<uint8_t> children(end - begin);
        tree_.assign(kernels::active(),
                     {sample.data() + begin * padded_dim(), end - begin, padded_dim()},
                     parents.data(), children.data(), distances.data() + begin);
      },
      kBlockTokens);
  return distances;
}

double Codec::share_beyond(MatrixView<const uint16_t> rows, size_t threads) const {
  WEFT_REQUIRE(rows.rows >= 1, ErrorCode::invalid_argument, "rows: found none, expected some");
  const std::vector<uint32_t> distances = measure(rows, threads);
  const auto n_beyond =
      std::ranges::count_if(distances, [&](uint32_t distance) { return distance > error_; });
  return static_cast<double>(n_beyond) / static_cast<double>(distances.size());
}

}  // namespace weft
