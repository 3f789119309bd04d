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
#include "quantizer/row_rotator.h"

namespace weft {

namespace {

constexpr size_t kBlockTokens = 4'096;
constexpr float kRatio = kPlaneRatio;
constexpr double kLongestCentroid = 2.0;
constexpr const char* kRemedy = "; the file is damaged, restore it or rebuild";

constexpr size_t kFactors = 20;

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
  for (const Ancestor& ancestor : parts.ancestors) {
    require(ancestor.children.size() == n_coarse, "ancestors: found ", ancestor.children.size(),
            " cells, expected ", n_coarse);
    for (size_t cell = 0; cell < n_coarse; ++cell) {
      const uint32_t size = tree.child_offsets[cell + 1] - tree.child_offsets[cell];
      require(ancestor.children[cell] >= 1 && ancestor.children[cell] <= size, "ancestors: cell ",
              cell, " had ", ancestor.children[cell], " children, expected 1..", size);
    }
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

Codec::Codec(CodecParts&& parts)
    : rotation_(parts.dim, parts.seed),
      nbits_(parts.nbits),
      seed_(parts.seed),
      n_tokens_(parts.n_tokens),
      coarse_scale_(parts.coarse_scale),
      fine_scale_(parts.fine_scale),
      error_(parts.error),
      checksum_(0),
      tree_(std::move(parts.tree), double{coarse_scale_} * token_scale(rotation_.padded_dim()),
            double{fine_scale_} * token_scale(rotation_.padded_dim())),
      ancestors_(std::move(parts.ancestors)) {
  checksum_ = digest();
}

uint32_t Codec::digest() const {
  const uint64_t numbers[] = {dim(),
                              nbits_,
                              seed_,
                              std::bit_cast<uint32_t>(coarse_scale_),
                              std::bit_cast<uint32_t>(fine_scale_),
                              error_};
  uint32_t crc = crc32c(0, numbers, sizeof numbers);
  crc = crc32c(crc, child_offsets().data(), child_offsets().size_bytes());
  crc = crc32c(crc, coarse().data(), coarse().size());
  crc = crc32c(crc, fine().data(), fine().size());
  for (const Ancestor& ancestor : ancestors_) {
    crc = crc32c(crc, &ancestor.checksum, sizeof ancestor.checksum);
    crc = crc32c(crc, ancestor.children.data(), ancestor.children.size() * sizeof(uint16_t));
  }
  return crc;
}

void Codec::require_dim(MatrixView<const uint16_t> rows) const {
  WEFT_REQUIRE(rows.cols == dim(), ErrorCode::invalid_argument, "rows have dim ", rows.cols,
               ", the codec has ", dim());
}

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

std::vector<uint32_t> Codec::child_offsets_of(uint32_t checksum) const {
  if (checksum == checksum_) {
    return {child_offsets().begin(), child_offsets().end()};
  }
  const auto found = std::ranges::find(ancestors_, checksum, &Ancestor::checksum);
  if (found == ancestors_.end()) {
    return {};
  }
  std::vector<uint32_t> offsets{0};
  for (const uint16_t size : found->children) {
    offsets.push_back(offsets.back() + size);
  }
  return offsets;
}

size_t Codec::byte_size() const noexcept {
  const size_t n_rows = size_t{n_coarse()} + n_fine();
  return n_rows * (padded_dim() + sizeof(int32_t)) + child_offsets().size_bytes();
}

void Codec::encode(MatrixView<const uint16_t> rows, bool plane, EncodedTokens& out) const {
  require_dim(rows);
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
