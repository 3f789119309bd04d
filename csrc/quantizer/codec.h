// SPDX-License-Identifier: Apache-2.0
//
// Token embeddings to codes and back. In rotated space a token x of unit length is kept as
//
//   x = m * (c + step * (level - middle / 2)),   middle = 2^nbits - 1
//
// c     its fine centroid: int8 * fine_scale, so the residual x - c loses nothing by it
// step  f16 per token, least squares for the best of 20 clip factors
// m     u8 per token: makes the reconstruction unit length, so that what quantisation takes from
//       a token's length does not become an error of its scores. 0.75 + u / 512; with 8 bits or a
//       second plane little is taken, and a finer m is due: 0.984375 + u / 8192
//
// A second plane (nbits 4 only) codes what the first left over with step / 12 in 16 levels:
//
//   x = m' * (c + step / 12 * (12 * upper + lower - 195 / 2))
//
// so both read as one code of 196 levels, and the planes overlap: an element beyond the outermost level of
// the first is still reached by the second. With a plane the step is a tenth wider than its optimum alone.
//
// The step is rounded to f16 before anything that depends on it is computed. For the tree a token
// is int8 on one grid for all tokens: 127 is four standard deviations of a rotated unit row's
// elements. Centroids are kept on the same grid. Integers, IEEE operations in a fixed order and
// square roots only: the same bytes for any number of threads and on any instruction set.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/parallel.h"
#include "base/views.h"
#include "quantizer/centroid_tree.h"
#include "quantizer/rotation.h"

namespace weft {

inline constexpr int64_t kCodecVersion = 3;

struct CodecParams {
  unsigned nbits = 4;       ///< 1, 2, 4 or 8
  uint32_t n_coarse = 0;    ///< 0: by rule
  uint32_t n_fine = 0;      ///< 0: by rule
  unsigned iterations = 8;  ///< rounds of k-means, at least 1
  uint64_t seed = 42;
  uint64_t n_tokens = 0;  ///< of the collection it is trained for; 0: as many as there are rows
  uint64_t max_sample_bytes = uint64_t{1} << 30;
  size_t threads = 0;                   ///< 0: default_threads()
  const BuildDevice* device = nullptr;  ///< takes part in training; null: the CPU alone
};

struct GrowParams {
  uint32_t n_more = 0;      ///< fine centroids to add
  unsigned iterations = 8;  ///< rounds of k-means, at least 1
  uint64_t n_tokens = 0;    ///< of the collection it is to be large enough for
  uint64_t max_sample_bytes = uint64_t{1} << 30;
  size_t threads = 0;  ///< 0: default_threads()
  /// Checksums of the codecs that segments in use were encoded with; the grown codec knows these.
  std::vector<uint32_t> used;
  const BuildDevice* device = nullptr;  ///< as in CodecParams
};

/// A codec that another has grown from: for each cell the number of its children, which are the first of
/// those it has now.
struct Ancestor {
  uint32_t checksum;
  std::vector<uint16_t> children;
};

struct TreeSize {
  uint32_t n_coarse;
  uint32_t n_fine;
};

/// How many centroids n_tokens get. By rule: n_coarse is the power of two nearest to sqrt(n_tokens)
/// in 16..65,536, doubled until a cell has at most 128 children; n_fine is n_tokens / 50. Given
/// numbers are kept or refused with Error(invalid_argument).
TreeSize tree_size(uint64_t n_tokens, uint32_t n_coarse, uint32_t n_fine);

/// What a codec consists of, as it is stored; see Codec for the meaning.
struct CodecParts {
  size_t dim = 0;
  unsigned nbits = 0;
  uint64_t seed = 0;
  uint64_t n_tokens = 0;
  float coarse_scale = 0.0f;
  float fine_scale = 0.0f;
  uint32_t error = 0;
  TreeArrays tree;
  std::vector<Ancestor> ancestors = {};
};

/// Encoded tokens, one entry per token in each vector; `codes` and `plane` hold padded_dim * nbits
/// / 8 and padded_dim / 2 bytes a token, packed as kernels::CodeBlock says. The plane may be
/// absent.
struct EncodedTokens {
  std::vector<uint16_t> parents;
  std::vector<uint8_t> children;
  std::vector<uint16_t> steps;  ///< f16
  std::vector<uint8_t> multipliers;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> plane;
  std::vector<uint8_t> plane_multipliers;
};

/// The part of EncodedTokens that decoding reads, borrowed. plane: null where there is none.
struct EncodedView {
  size_t n = 0;
  const uint16_t* parents = nullptr;
  const uint8_t* children = nullptr;
  const uint16_t* steps = nullptr;
  const uint8_t* multipliers = nullptr;
  const uint8_t* codes = nullptr;
  const uint8_t* plane = nullptr;
  const uint8_t* plane_multipliers = nullptr;
};

/// What a stored multiplier u8 stands for: least + u * step.
struct MultiplierGrid {
  float least;
  float step;

  constexpr float operator()(uint8_t stored) const {
    return least + static_cast<float>(stored) * step;
  }
};
inline constexpr MultiplierGrid kWideGrid{0.75f, 1.0f / 512.0f};
inline constexpr MultiplierGrid kFineGrid{0.984375f, 1.0f / 8192.0f};  ///< 8 bits; both planes

/// With a second plane the first one's step is this much wider than its own optimum: its error grows by
/// 8 %, that of both planes together falls by 40 %, because fewer elements lie beyond the outermost
/// level (docs/adr/0015).
inline constexpr float kPlaneWidening = 1.1f;

/// Clip factors tried for the step, for 1, 2, 4 and 8 bits: evenly spaced from `least` to 1. The
/// fewer levels, the more clipping pays; one bit has no choice to make.
std::span<const float> clip_factors(unsigned nbits);

/// Rotation and centroid tree: what encodes and decodes. Immutable, hence thread-safe.
class Codec {
 public:
  /// Checks that the parts belong together, wherever they come from: Error(corrupt) naming `path`.
  static Codec from_parts(CodecParts parts, const std::string& path = {});

  /// rows: f16 [n >= 1, dim], unit length, possibly a mapped file: a sample is read once, in order.
  /// A function of (rows, params) but for params.threads. Stages of progress: "sample", "coarse",
  /// "fine".
  static Codec train(MatrixView<const uint16_t> rows, const CodecParams& params,
                     const Progress& progress = {});

  /// This codec with more fine centroids, trained on rows, f16 [n >= 1, dim]; every centroid there is
  /// keeps its place and its value, so codes made before are read the same with both. A function of
  /// its arguments but for params.threads. Stages of progress: "sample", "grow".
  Codec grow(MatrixView<const uint16_t> rows, const GrowParams& params,
             const Progress& progress = {}) const;

  /// The share of rows, f16 [n >= 1, dim], that are farther from their fine centroid than error(),
  /// estimated on at most 16,384 of them. Of tokens like those it was trained on, it is about 0.05.
  double share_beyond(MatrixView<const uint16_t> rows, size_t threads) const;

  /// From and to a .weft container; defined in index/codec_file.cpp, since this layer does not know
  /// containers. write() returns the checksum of the file's header. Errors of open(): corrupt,
  /// incompatible, io.
  static std::shared_ptr<const Codec> open(const std::string& path);
  uint32_t write(const FileWriter& file) const;

  size_t dim() const noexcept { return rotation_.dim(); }
  size_t padded_dim() const noexcept { return rotation_.padded_dim(); }
  unsigned nbits() const noexcept { return nbits_; }
  /// Of the multipliers that go with the codes; those of a plane are on kFineGrid.
  MultiplierGrid multiplier_grid() const noexcept { return nbits_ == 8 ? kFineGrid : kWideGrid; }
  uint64_t seed() const noexcept { return seed_; }
  /// Tokens of the collection it is large enough for: of the one it was trained for, or what it has
  /// grown to.
  uint64_t n_tokens() const noexcept { return n_tokens_; }
  const Rotation& rotation() const noexcept { return rotation_; }
  const CentroidTree& tree() const noexcept { return tree_; }

  uint32_t n_coarse() const noexcept { return static_cast<uint32_t>(tree_.coarse().n); }
  uint32_t n_fine() const noexcept { return static_cast<uint32_t>(tree_.fine().n); }
  /// Centroids, [n][padded_dim], 64-byte aligned: the value is int8 * scale.
  std::span<const int8_t> coarse() const noexcept;
  std::span<const int8_t> fine() const noexcept;
  float coarse_scale() const noexcept { return coarse_scale_; }
  float fine_scale() const noexcept { return fine_scale_; }
  /// 95 % of the tokens that the first codec was trained for are no farther from their fine centroid:
  /// squared, in steps of the tokens' grid. A grown codec has that of the codec it has grown from.
  uint32_t error() const noexcept { return error_; }
  /// Length of the longest centroid, in units of its scale.
  double longest_coarse() const noexcept { return tree_.longest_coarse(); }
  double longest_fine() const noexcept { return tree_.longest_fine(); }
  /// Children of cell i are the fine centroids child_offsets()[i] .. child_offsets()[i + 1] - 1.
  std::span<const uint32_t> child_offsets() const noexcept { return tree_.child_offsets(); }

  /// The fine centroid of a token, or n_fine() for what only a damaged file holds.
  uint32_t fine_of(uint16_t parent, uint8_t child) const noexcept {
    const uint32_t fine = child_offsets()[std::min<uint32_t>(parent, n_coarse())] + child;
    return std::min(fine, n_fine());
  }

  /// CRC32C of everything it says: tells one codec from another, written or not.
  uint32_t checksum() const noexcept { return checksum_; }
  std::span<const Ancestor> ancestors() const noexcept { return ancestors_; }
  /// child_offsets of the codec with this checksum: this one, or one that it has grown from; empty for
  /// any other.
  std::vector<uint32_t> child_offsets_of(uint32_t checksum) const;
  /// Bytes of memory held.
  size_t byte_size() const noexcept;

  /// Encodes one block of rows, f16 [n, dim], on the calling thread and overwrites `out`. A token's
  /// bytes do not depend on its neighbours. Rows that are not of unit length lose their length.
  /// Blocks of some thousand tokens keep everything in cache. plane: also the second plane; needs
  /// nbits 4.
  void encode(MatrixView<const uint16_t> rows, bool plane, EncodedTokens& out) const;

  /// row[padded_dim]: the reconstruction of token t in rotated space. A centroid beyond n_fine is read as
  /// the last one. `levels`: scratch.
  void decode_rotated(const EncodedView& tokens, size_t t, AlignedBuffer<uint8_t>& levels,
                      float* row) const;

  /// out[n][dim]: the reconstructions, rotated back. Centroids beyond n_fine are read as the last
  /// one.
  void decode(const EncodedView& tokens, float* out) const;

 private:
  explicit Codec(CodecParts&& parts);
  uint32_t digest() const;
  void require_dim(MatrixView<const uint16_t> rows) const;
  /// Squared distances of at most 16,384 of the rows to their fine centroids.
  std::vector<uint32_t> measure(MatrixView<const uint16_t> rows, size_t threads) const;

  Rotation rotation_;
  unsigned nbits_;
  uint64_t seed_;
  uint64_t n_tokens_;
  float coarse_scale_;
  float fine_scale_;
  uint32_t error_;
  uint32_t checksum_;
  CentroidTree tree_;
  std::vector<Ancestor> ancestors_;
};

}  // namespace weft
