// SPDX-License-Identifier: Apache-2.0
//
// An immutable batch of documents, mapped. Which arrays its file holds is written in docs/format.md;
// a segment without a codec holds its f16 rows alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "index/container.h"
#include "quantizer/codec.h"

namespace weft {

/// What a segment stores beside its codes for the rerank stage.
enum class Rerank : uint8_t { none = 0, plane = 1, f16 = 2 };

/// "none", "plane", "f16"; Error(invalid_argument) for anything else.
Rerank parse_rerank(std::string_view name);
std::string_view rerank_name(Rerank rerank) noexcept;

/// The numbers at the head of a segment file, in the order of the `meta` array.
struct SegmentMeta {
  int64_t version = 1;
  int64_t dim = 0;
  int64_t padded_dim = 0;
  int64_t nbits = 0;  ///< 0: no codes, f16 rows only
  int64_t rerank = 0;
  int64_t n_docs = 0;
  int64_t n_tokens = 0;
  int64_t codec_checksum = 0;
  static constexpr size_t kCount = 8;
};

/// Const is safe from any thread. Everything returned borrows from the mapped file.
class Segment {
 public:
  /// Checks the structure, not the payload: see verify(). `codec`: that of its codes, or one that has
  /// grown from it; may be null for a segment of rows. Throws corrupt, incompatible (newer version,
  /// another codec), io.
  static std::shared_ptr<const Segment> open(const std::string& path,
                                             std::shared_ptr<const Codec> codec);

  uint32_t doc_count() const noexcept { return static_cast<uint32_t>(meta_.n_docs); }
  uint64_t token_count() const noexcept { return static_cast<uint64_t>(meta_.n_tokens); }
  size_t dim() const noexcept { return static_cast<size_t>(meta_.dim); }
  bool has_codes() const noexcept { return meta_.nbits != 0; }
  Rerank rerank() const noexcept { return static_cast<Rerank>(meta_.rerank); }
  uint32_t checksum() const noexcept { return container_.checksum(); }
  const std::string& path() const noexcept { return path_; }
  const Codec* codec() const noexcept { return codec_.get(); }
  /// Of the codec that made its codes; 0 without codes.
  uint32_t codec_checksum() const noexcept { return static_cast<uint32_t>(meta_.codec_checksum); }

  std::string_view id(uint32_t doc) const noexcept;
  std::optional<uint32_t> find(std::string_view id) const noexcept;
  /// Place of a document when ids are sorted as UTF-8 bytes: the order of equal scores.
  uint32_t id_rank(uint32_t doc) const noexcept { return id_ranks_[doc]; }

  std::span<const uint64_t> doc_offsets() const noexcept { return doc_offsets_; }
  size_t length(uint32_t doc) const noexcept {
    return static_cast<size_t>(doc_offsets_[doc + 1] - doc_offsets_[doc]);
  }

  /// f16 rows [n_tokens][dim]; empty unless rerank() is f16 or there are no codes.
  std::span<const uint16_t> rows() const noexcept { return rows_; }
  std::span<const uint16_t> parents() const noexcept { return parents_; }
  std::span<const uint8_t> children() const noexcept { return children_; }
  std::span<const uint16_t> steps() const noexcept { return steps_; }
  std::span<const uint8_t> multipliers() const noexcept { return multipliers_; }
  std::span<const uint8_t> codes() const noexcept { return codes_; }
  std::span<const uint8_t> plane() const noexcept { return plane_; }
  std::span<const uint8_t> plane_multipliers() const noexcept { return plane_multipliers_; }

  /// The codes of tokens [first, first + n), for Codec::decode.
  EncodedView encoded(size_t first, size_t n) const noexcept;

  /// out[length(doc)][dim]: the document's rows from the best form stored, rotated back.
  void read_rows(uint32_t doc, float* out) const;

  /// Inverted lists: postings of fine centroid f are [list_offsets[f], list_offsets[f + 1]); of one that
  /// is younger than the segment there are none.
  std::span<const uint64_t> list_offsets() const noexcept { return list_offsets_; }
  const uint8_t* postings() const noexcept { return postings_.data(); }
  unsigned width() const noexcept { return width_; }

  /// Reads everything: payload checksums, then every value against its range. Error(corrupt).
  void verify() const;

 private:
  Segment(std::string path, Container container, std::shared_ptr<const Codec> codec);
  void read_ids();
  void read_codes();
  void read_lists();

  std::string path_;
  Container container_;
  std::shared_ptr<const Codec> codec_;
  SegmentMeta meta_;
  std::span<const uint64_t> doc_offsets_, id_offsets_, list_offsets_;
  std::span<const uint32_t> id_order_;
  std::span<const uint8_t> id_bytes_, children_, multipliers_, codes_, plane_, plane_multipliers_,
      postings_;
  std::span<const uint16_t> rows_, parents_, steps_;
  std::vector<uint32_t> id_ranks_;
  std::vector<uint64_t>
      spread_offsets_;  ///< where the codec has grown since: what list_offsets_ views
  unsigned width_ = 2;
};

}  // namespace weft
