// SPDX-License-Identifier: Apache-2.0
#include "quantizer/codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/buffer.h"
#include "base/checksum.h"
#include "base/half.h"
#include "kernels/dispatch.h"
#include "quantizer/packing.h"

namespace weft {

namespace {

constexpr size_t kBlockTokens = 4'096;
constexpr size_t kSampleWindow = size_t{1} << 16;  // rows drawn before they are read
constexpr uint64_t kSampleTokensPerFine = 24;
constexpr uint64_t kLeastSamplePerFine = 8;
constexpr uint64_t kTokensPerFine = 50;
constexpr uint32_t kChildrenByRule = 128;
constexpr float kRatio = kPlaneRatio;
/// With a second plane the first one's step is this much wider than its own optimum: its error grows by
/// 8 %, that of both planes together falls by 40 %, because fewer elements lie beyond the outermost
/// level (docs/adr/0015).
constexpr float kPlaneWidening = 1.1f;
constexpr double kLongestCentroid = 2.0;
constexpr const char* kRemedy = "; the file is damaged, restore it or rebuild";

/// int8 per unit of length: 127 is four standard deviations of an element of a rotated unit row.
float token_scale(size_t padded_dim) {
  return static_cast<float>(127.0 * std::sqrt(static_cast<double>(padded_dim)) / 4.0);
}

/// Clip factors tried for the step, for 1, 2, 4 and 8 bits: evenly spaced from `least` to 1. The
/// fewer levels, the more clipping pays; one bit has no choice to make.
constexpr size_t kFactors = 20;

std::span<const float> clip_factors(unsigned nbits) {
  static constexpr auto kTables = [] {
    constexpr float kLeast[4] = {1.0f, 0.3f, 0.6f, 0.9f};
    std::array<std::array<float, kFactors>, 4> tables{};
    for (size_t row = 0; row < 4; ++row) {
      for (size_t i = 0; i < kFactors; ++i) {
        tables[row][i] = kLeast[row] + (1.0f - kLeast[row]) * static_cast<float>(i) /
                                           static_cast<float>(kFactors - 1);
      }
    }
    return tables;
  }();
  const auto& table = kTables[static_cast<size_t>(std::countr_zero(nbits))];
  return nbits == 1 ? std::span(table).first(1) : std::span(table);
}

/// Squared length in eight interleaved sums.
float squared_length(const float* x, size_t dim) {
  float sums[8] = {};
  for (size_t d = 0; d < dim; d += 8) {
    for (size_t i = 0; i < 8; ++i) {
      sums[i] += x[d + i] * x[d + i];
    }
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

/// The stored multiplier that brings x nearest to unit length; 1 for the zero row.
uint8_t multiplier_for(const float* x, size_t dim, MultiplierGrid grid) {
  const float squared = squared_length(x, dim);
  const float wanted = squared > 0.0f ? 1.0f / std::sqrt(squared) : 1.0f;
  const float place = (wanted - grid.least) / grid.step;
  return static_cast<uint8_t>(std::min(std::max(0.0f, place), 255.0f) + 0.5f);
}

/// out = centroid * scale + step * (level - middle / 2).
void reconstruct(const int8_t* centroid, float scale, const uint8_t* levels, float step, int middle,
                 size_t dim, float* out) {
  const float half = 0.5f * static_cast<float>(middle);
  for (size_t d = 0; d < dim; ++d) {
    out[d] =
        static_cast<float>(centroid[d]) * scale + step * (static_cast<float>(levels[d]) - half);
  }
}

/// out[d] = the level nearest to row[d] / step + middle, in 0..15; halves go up.
void nearest_levels(const float* row, float step, float middle, size_t dim, uint8_t* out) {
  const float per_step = step > 0.0f ? 1.0f / step : 0.0f;
  for (size_t d = 0; d < dim; ++d) {
    out[d] =
        static_cast<uint8_t>(std::min(std::max(0.0f, row[d] * per_step + (middle + 0.5f)), 15.5f));
  }
}

/// Rotates f16 rows, one at a time.
class RowRotator {
 public:
  RowRotator(const kernels::Kernels& kernel, const Rotation& rotation)
      : kernel_(kernel),
        rotation_(rotation),
        scale_(token_scale(rotation.padded_dim())),
        row_(rotation.dim()) {}

  /// rotated: f32 [padded_dim]; bytes: the same as int8, for the tree.
  void operator()(const uint16_t* row, float* rotated, int8_t* bytes) {
    kernel_.half_to_float(row, rotation_.dim(), row_.data());
    rotation_.apply(row_.data(), rotated);
    kernel_.to_int8(rotated, rotation_.padded_dim(), scale_, bytes);
  }

 private:
  const kernels::Kernels& kernel_;
  const Rotation& rotation_;
  float scale_;
  AlignedBuffer<float> row_;
};

uint32_t checksum_of(const CodecParts& parts) {
  const uint64_t numbers[] = {parts.dim, parts.nbits, parts.seed,
                              std::bit_cast<uint32_t>(parts.coarse_scale),
                              std::bit_cast<uint32_t>(parts.fine_scale)};
  uint32_t crc = crc32c(0, numbers, sizeof numbers);
  const auto& offsets = parts.tree.child_offsets;
  crc = crc32c(crc, offsets.data(), offsets.size() * sizeof(uint32_t));
  crc = crc32c(crc, parts.tree.coarse.data(), parts.tree.coarse.size());
  return crc32c(crc, parts.tree.fine.data(), parts.tree.fine.size());
}

void check(const CodecParts& parts, const std::string& path) {
  const auto require = [&](bool condition, const auto&... message) {
    if (!condition) {
      throw Error(ErrorCode::corrupt, concat(message..., kRemedy), path);
    }
  };
  const TreeArrays& tree = parts.tree;
  require(parts.dim >= 1 && parts.dim <= kMaxDim, "dim: found ", parts.dim, ", expected 1..",
          kMaxDim);
  require(tree.dim == pad_dim(parts.dim), "padded_dim: found ", tree.dim, ", expected ",
          pad_dim(parts.dim));
  require(parts.nbits >= 1 && parts.nbits <= 8 && std::has_single_bit(parts.nbits), "nbits: found ",
          parts.nbits, ", expected 1, 2, 4 or 8");
  for (const float scale : {parts.coarse_scale, parts.fine_scale}) {
    require(std::isfinite(scale) && scale > 0.0f, "scales: found ", scale,
            ", expected a positive number");
  }
  const size_t n_coarse = std::max<size_t>(tree.child_offsets.size(), 1) - 1;
  require(n_coarse >= 1 && n_coarse <= kMaxCoarse, "child_offsets: found ", n_coarse,
          " cells, expected 1..", kMaxCoarse);
  require(tree.child_offsets[0] == 0, "child_offsets: begins with ", tree.child_offsets[0],
          ", expected 0");
  for (size_t cell = 0; cell < n_coarse; ++cell) {
    const uint32_t begin = tree.child_offsets[cell];
    const uint32_t end = tree.child_offsets[cell + 1];
    require(end > begin && end - begin <= kMaxChildren, "child_offsets: cell ", cell, " goes from ",
            begin, " to ", end, ", expected 1..", kMaxChildren, " children");
  }
  const auto check_rows = [&](const char* name, const AlignedBuffer<int8_t>& rows, size_t n) {
    require(rows.size() == n * tree.dim, name, ": found ", rows.size(), " values, expected ",
            n * tree.dim);
    require(std::memchr(rows.data(), 0x80, rows.size()) == nullptr, name,
            ": found -128, expected -127..127");
  };
  check_rows("coarse", tree.coarse, n_coarse);
  check_rows("fine", tree.fine, tree.child_offsets.back());
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

Codec::Codec(CodecParts&& parts)
    : rotation_(parts.dim, parts.seed),
      nbits_(parts.nbits),
      seed_(parts.seed),
      n_tokens_(parts.n_tokens),
      coarse_scale_(parts.coarse_scale),
      fine_scale_(parts.fine_scale),
      checksum_(checksum_of(parts)),
      tree_(std::move(parts.tree), double{coarse_scale_} * token_scale(rotation_.padded_dim()),
            double{fine_scale_} * token_scale(rotation_.padded_dim())) {}

Codec Codec::from_parts(CodecParts parts, const std::string& path) {
  check(parts, path);
  Codec codec(std::move(parts));
  // Means of unit rows are no longer than 1, but for the rounding to their grid.
  for (const auto& [name, length] :
       {std::pair("coarse", codec.longest_coarse() * codec.coarse_scale()),
        std::pair("fine", codec.longest_fine() * codec.fine_scale())}) {
    if (length > kLongestCentroid) {
      throw Error(ErrorCode::corrupt,
                  concat("scales: a ", name, " centroid has length ", length, ", expected at most ",
                         kLongestCentroid, kRemedy),
                  path);
    }
  }
  return codec;
}

std::span<const int8_t> Codec::coarse() const noexcept {
  return {tree_.coarse().data, tree_.coarse().n * padded_dim()};
}

std::span<const int8_t> Codec::fine() const noexcept {
  return {tree_.fine().data, tree_.fine().n * padded_dim()};
}

size_t Codec::byte_size() const noexcept {
  const size_t n_rows = size_t{n_coarse()} + n_fine();
  return n_rows * (padded_dim() + sizeof(int32_t)) + child_offsets().size_bytes();
}

Codec Codec::train(MatrixView<const uint16_t> rows, const CodecParams& params,
                   const Progress& progress) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(rows.rows >= 1, kBad, "training rows: found none, expected at least 1");
  WEFT_REQUIRE(params.nbits >= 1 && params.nbits <= 8 && std::has_single_bit(params.nbits), kBad,
               "nbits=", params.nbits, ": expected 1, 2, 4 or 8");
  WEFT_REQUIRE(params.iterations >= 1, kBad, "iterations=0: expected at least 1");
  const Rotation rotation(rows.cols, params.seed);
  const size_t padded = rotation.padded_dim();
  WEFT_REQUIRE(params.max_sample_bytes >= padded, kBad,
               "max_sample_bytes=", params.max_sample_bytes, ": expected at least one token, ",
               padded, " bytes");
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

  const kernels::Kernels& kernel = kernels::active();
  AlignedBuffer<int8_t> sample(n_sample * padded);
  AscendingDraw draw(rows.rows, n_sample, Random(params.seed, 1));
  std::vector<uint64_t> window;
  for (size_t first = 0; first < n_sample; first += window.size()) {
    window.resize(std::min(kSampleWindow, n_sample - first));
    std::ranges::generate(window, [&] { return draw.next(); });
    parallel_for(
        window.size(), params.threads,
        [&](size_t begin, size_t end, size_t) {
          RowRotator rotate(kernel, rotation);
          AlignedBuffer<float> rotated(padded);
          for (size_t i = begin; i < end; ++i) {
            rotate(rows.row(window[i]), rotated.data(), sample.data() + (first + i) * padded);
          }
        },
        1'024);
    if (progress) {
      progress("sample", first + window.size(), n_sample);
    }
  }
  const float scale = 1.0f / token_scale(padded);
  return Codec({.dim = rows.cols,
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
                                             .threads = params.threads},
                                            progress)});
}

void Codec::encode(MatrixView<const uint16_t> rows, bool plane, EncodedTokens& out) const {
  WEFT_REQUIRE(rows.cols == dim(), ErrorCode::invalid_argument, "rows have dim ", rows.cols,
               ", the codec has ", dim());
  WEFT_REQUIRE(!plane || nbits_ == 4, ErrorCode::invalid_argument,
               "a second plane goes with nbits=4, found nbits=", nbits_);
  const kernels::Kernels& kernel = kernels::active();
  const size_t n = rows.rows;
  const size_t padded = padded_dim();
  const size_t code_bytes = padded * nbits_ / 8;
  out.parents.resize(n);
  out.children.resize(n);
  out.steps.resize(n);
  out.multipliers.resize(n);
  out.codes.resize(n * code_bytes);
  out.plane.resize(plane ? n * padded / 2 : 0);
  out.plane_multipliers.resize(plane ? n : 0);

  const std::span<const float> factors = clip_factors(nbits_);
  const int middle = (1 << nbits_) - 1;
  const float half = 0.5f * static_cast<float>(middle);
  RowRotator rotate(kernel, rotation_);
  AlignedBuffer<float> rotated(kBlockTokens * padded);
  AlignedBuffer<int8_t> bytes(kBlockTokens * padded);
  AlignedBuffer<float> residual(padded);
  AlignedBuffer<float> decoded(padded);
  AlignedBuffer<uint8_t> levels(padded);
  AlignedBuffer<uint8_t> lower(padded);
  for (size_t first = 0; first < n; first += kBlockTokens) {
    const size_t count = std::min(kBlockTokens, n - first);
    for (size_t i = 0; i < count; ++i) {
      rotate(rows.row(first + i), rotated.data() + i * padded, bytes.data() + i * padded);
    }
    tree_.assign(kernel, {bytes.data(), count, padded}, out.parents.data() + first,
                 out.children.data() + first);
    for (size_t i = 0; i < count; ++i) {
      const size_t t = first + i;
      const float* token = rotated.data() + i * padded;
      const int8_t* centroid = tree_.fine().row(fine_of(out.parents[t], out.children[t]));
      for (size_t d = 0; d < padded; ++d) {
        residual[d] = token[d] - static_cast<float>(centroid[d]) * fine_scale_;
      }
      float step = kernel.quantize_row(residual.data(), padded, factors.data(), factors.size(),
                                       middle, levels.data());
      out.steps[t] = float_to_half(plane ? step * kPlaneWidening : step);
      step = half_to_float(out.steps[t]);
      if (plane) {
        nearest_levels(residual.data(), step, half, padded, levels.data());
      }
      reconstruct(centroid, fine_scale_, levels.data(), step, middle, padded, decoded.data());
      out.multipliers[t] = multiplier_for(decoded.data(), padded, multiplier_grid());
      pack(levels.data(), padded, nbits_, out.codes.data() + t * code_bytes);
      if (plane) {
        for (size_t d = 0; d < padded; ++d) {
          residual[d] -= step * (static_cast<float>(levels[d]) - half);
        }
        nearest_levels(residual.data(), step / kRatio, half, padded, lower.data());
        for (size_t d = 0; d < padded; ++d) {
          levels[d] = static_cast<uint8_t>(kPlaneRatio * levels[d] + lower[d]);
        }
        reconstruct(centroid, fine_scale_, levels.data(), step / kRatio, kPlaneMiddle, padded,
                    decoded.data());
        out.plane_multipliers[t] = multiplier_for(decoded.data(), padded, kFineGrid);
        pack(lower.data(), padded, 4, out.plane.data() + t * padded / 2);
      }
    }
  }
}

void Codec::decode_rotated(const EncodedView& tokens, size_t t, AlignedBuffer<uint8_t>& levels,
                           float* row) const {
  const size_t padded = padded_dim();
  levels.grow(padded);
  const int8_t* centroid =
      tree_.fine().row(std::min(fine_of(tokens.parents[t], tokens.children[t]), n_fine() - 1));
  const uint8_t* codes = tokens.codes + t * (padded * nbits_ / 8);
  const float step = half_to_float(tokens.steps[t]);
  const bool plane = tokens.plane != nullptr;
  if (plane) {
    merge_planes(codes, tokens.plane + t * padded / 2, padded, levels.data());
    reconstruct(centroid, fine_scale_, levels.data(), step / kRatio, kPlaneMiddle, padded, row);
  } else {
    unpack(codes, padded, nbits_, levels.data());
    reconstruct(centroid, fine_scale_, levels.data(), step, (1 << nbits_) - 1, padded, row);
  }
  const float multiplier =
      plane ? kFineGrid(tokens.plane_multipliers[t]) : multiplier_grid()(tokens.multipliers[t]);
  for (size_t d = 0; d < padded; ++d) {
    row[d] *= multiplier;
  }
}

void Codec::decode(const EncodedView& tokens, float* out) const {
  AlignedBuffer<float> rotated(padded_dim());
  AlignedBuffer<uint8_t> levels(padded_dim());
  for (size_t t = 0; t < tokens.n; ++t) {
    decode_rotated(tokens, t, levels, rotated.data());
    rotation_.invert(rotated.data(), out + t * dim());
  }
}

}  // namespace weft
