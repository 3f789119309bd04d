// SPDX-License-Identifier: Apache-2.0
#include "index/segment_builder.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "index/inverted_lists.h"

namespace weft {

namespace {

constexpr size_t kBlockTokens = 4'096;  // one parallel_for index
constexpr size_t kWindowBlocks = 32;    // blocks encoded before they are written: about 9 MB
constexpr uint64_t kMaxTokens = uint64_t{1} << 24;

std::vector<uint32_t> sorted_by_id(const IdTable& ids, size_t n_docs) {
  const char* bytes = reinterpret_cast<const char*>(ids.bytes.data());
  const auto id = [&](uint32_t doc) {
    return std::string_view(bytes + ids.offsets[doc],
                            static_cast<size_t>(ids.offsets[doc + 1] - ids.offsets[doc]));
  };
  std::vector<uint32_t> order(n_docs);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return id(a) < id(b); });
  for (size_t i = 1; i < n_docs; ++i) {
    WEFT_REQUIRE(id(order[i - 1]) != id(order[i]), ErrorCode::invalid_argument, "id \"",
                 id(order[i]), "\" occurs twice; document ids must be unique");
  }
  return order;
}

/// A segment file in the making: its arrays in the order of docs/format.md.
class SegmentFile {
 public:
  /// Writes all but rows and codes. Without a codec there are the rows alone.
  SegmentFile(FileWriter file, size_t dim, const Codec* codec, Rerank rerank,
              std::span<const uint64_t> doc_offsets, const IdTable& ids)
      : codec_(codec), rerank_(codec == nullptr ? Rerank::f16 : rerank), doc_offsets_(doc_offsets) {
    const size_t n_docs = doc_offsets.size() - 1;
    const auto n = static_cast<size_t>(doc_offsets.back());
    constexpr auto kBad = ErrorCode::invalid_argument;
    WEFT_REQUIRE(n <= kMaxTokens && n_docs <= kMaxTokens, kBad, "segment of ", n, " tokens in ",
                 n_docs, " documents: expected at most ", kMaxTokens, " of each");
    WEFT_REQUIRE(ids.offsets.size() == n_docs + 1 && ids.offsets.back() == ids.bytes.size(), kBad,
                 "id_offsets: expected ", n_docs + 1, " entries ending at ", ids.bytes.size());
    const std::vector<uint32_t> order = sorted_by_id(ids, n_docs);

    std::vector<ArraySpec> specs;
    const auto add = [&](const char* name, DType dtype, std::vector<uint64_t> shape) {
      specs.push_back({name, dtype, std::move(shape)});
      return specs.size() - 1;
    };
    const size_t meta = add("meta", DType::s64, {SegmentMeta::kCount});
    const size_t offsets = add("doc_offsets", DType::u64, {n_docs + 1});
    const size_t id_offsets = add("id_offsets", DType::u64, {n_docs + 1});
    const size_t id_bytes = add("id_bytes", DType::u8, {ids.bytes.size()});
    const size_t id_order = add("id_order", DType::u32, {n_docs});
    rows_ = has_rows() ? add("rows", DType::f16, {n, dim}) : 0;
    if (codec != nullptr) {
      const size_t padded = codec->padded_dim();
      parents_ = add("parents", DType::u16, {n});
      children_ = add("children", DType::u8, {n});
      steps_ = add("steps", DType::f16, {n});
      multipliers_ = add("multipliers", DType::u8, {n});
      codes_ = add("codes", DType::u8, {n, padded * codec->nbits() / 8});
      if (has_plane()) {
        plane_ = add("plane", DType::u8, {n, padded / 2});
        plane_multipliers_ = add("plane_multipliers", DType::u8, {n});
      }
      list_offsets_ = add("list_offsets", DType::u64, {codec->n_fine() + uint64_t{1}});
      postings_ = add("postings", DType::u8, {0});  // its size is known at the end
      all_parents_.reserve(n);
      all_children_.reserve(n);
    }
    out_.emplace(std::move(file), std::move(specs));
    const int64_t header[SegmentMeta::kCount] = {
        1,
        static_cast<int64_t>(dim),
        codec ? static_cast<int64_t>(codec->padded_dim()) : 0,
        codec ? static_cast<int64_t>(codec->nbits()) : 0,
        static_cast<int64_t>(rerank_),
        static_cast<int64_t>(n_docs),
        static_cast<int64_t>(n),
        codec ? static_cast<int64_t>(codec->checksum()) : 0};
    out_->append(meta, header, sizeof header);
    append(offsets, doc_offsets);
    append(id_offsets, ids.offsets);
    append(id_bytes, ids.bytes);
    append(id_order, std::span(order));
  }

  bool has_rows() const noexcept { return rerank_ == Rerank::f16; }
  bool has_plane() const noexcept { return rerank_ == Rerank::plane; }

  void append_rows(std::span<const uint16_t> rows) { append(rows_, rows); }

  /// The codes of the next tokens, as EncodedTokens names them.
  void append_codes(std::span<const uint16_t> parents, std::span<const uint8_t> children,
                    std::span<const uint16_t> steps, std::span<const uint8_t> multipliers,
                    std::span<const uint8_t> codes) {
    append(parents_, parents);
    append(children_, children);
    append(steps_, steps);
    append(multipliers_, multipliers);
    append(codes_, codes);
    all_parents_.insert(all_parents_.end(), parents.begin(), parents.end());
    all_children_.insert(all_children_.end(), children.begin(), children.end());
  }

  void append_plane(std::span<const uint8_t> plane, std::span<const uint8_t> multipliers) {
    append(plane_, plane);
    append(plane_multipliers_, multipliers);
  }

  /// Builds the lists and ends the file.
  SegmentStats finish() {
    SegmentStats stats{.n_docs = doc_offsets_.size() - 1, .n_tokens = doc_offsets_.back()};
    if (codec_ != nullptr) {
      const InvertedLists lists =
          build_lists(all_parents_, all_children_, doc_offsets_, codec_->child_offsets());
      stats.n_postings = lists.posting_count();
      append(list_offsets_, std::span(lists.offsets));
      out_->set_last_shape({lists.postings.size()});
      append(postings_, std::span(lists.postings));
    }
    stats.checksum = out_->finish();
    stats.n_bytes = out_->file_bytes();
    return stats;
  }

 private:
  template <class T>
  void append(size_t array, std::span<T> values) {
    out_->append(array, values.data(), values.size_bytes());
  }

  const Codec* codec_;
  Rerank rerank_;
  std::span<const uint64_t> doc_offsets_;
  std::optional<ContainerWriter> out_;
  size_t rows_ = 0, parents_ = 0, children_ = 0, steps_ = 0, multipliers_ = 0, codes_ = 0,
         plane_ = 0, plane_multipliers_ = 0, list_offsets_ = 0, postings_ = 0;
  std::vector<uint16_t> all_parents_;
  std::vector<uint8_t> all_children_;
};

/// Tokens [first, first + n) of an array that has `width` values for each.
template <class T>
std::span<const T> tokens(std::span<const T> array, uint64_t first, uint64_t n, size_t width = 1) {
  return array.subspan(static_cast<size_t>(first) * width, static_cast<size_t>(n) * width);
}

}  // namespace

SegmentStats write_segment(FileWriter file, std::shared_ptr<const Codec> codec,
                           RaggedView<const uint16_t> docs, const IdTable& ids, Rerank rerank,
                           size_t threads, const Progress& progress, const BuildDevice* device) {
  const size_t n = docs.tokens.rows;
  const size_t dim = docs.tokens.cols;
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(docs.tokens.stride == dim, kBad, "rows: expected contiguous rows of ", dim,
               " values");
  WEFT_REQUIRE(codec == nullptr || codec->dim() == dim, kBad, "rows have dim ", dim,
               ", the codec has ", codec ? codec->dim() : 0);
  WEFT_REQUIRE(rerank != Rerank::plane || codec == nullptr || codec->nbits() == 4, kBad,
               "rerank=\"plane\": expected nbits=4, found nbits=", codec ? codec->nbits() : 0);
  SegmentFile out(std::move(file), dim, codec.get(), rerank, docs.offsets, ids);

  const auto append_codes = [&](const EncodedTokens& encoded) {
    out.append_codes(encoded.parents, encoded.children, encoded.steps, encoded.multipliers,
                     encoded.codes);
    if (out.has_plane()) {
      out.append_plane(encoded.plane, encoded.plane_multipliers);
    }
  };
  size_t done = 0;
  const auto append_rows = [&](size_t count) {
    if (out.has_rows()) {
      out.append_rows({docs.tokens.row(done), count * dim});
    }
    done += count;
    if (progress) {
      progress("write", done, n);
    }
  };
  if (codec != nullptr && device != nullptr) {
    device->encode(*codec, docs.tokens, out.has_plane(), [&](const EncodedTokens& batch) {
      append_codes(batch);
      append_rows(batch.parents.size());
    });
    return out.finish();
  }
  const size_t window_tokens = kBlockTokens * kWindowBlocks;
  std::vector<EncodedTokens> window(codec ? kWindowBlocks : 0);
  while (done < n) {
    const size_t count = std::min(window_tokens, n - done);
    const size_t blocks = (count + kBlockTokens - 1) / kBlockTokens;
    if (codec != nullptr) {
      parallel_for(blocks, threads, [&](size_t begin, size_t end, size_t) {
        for (size_t block = begin; block < end; ++block) {
          const size_t from = block * kBlockTokens;
          codec->encode(docs.tokens.slice(done + from, std::min(kBlockTokens, count - from)),
                        out.has_plane(), window[block]);
        }
      });
      std::for_each_n(window.begin(), blocks, append_codes);
    }
    append_rows(count);
  }
  return out.finish();
}

SegmentStats merge_segments(FileWriter file, std::span<const SegmentPart> parts,
                            const Progress& progress) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(!parts.empty(), kBad, "no segments to merge");
  const Segment& head = *parts.front().segment;
  std::vector<uint64_t> doc_offsets{0}, id_offsets{0};
  std::vector<uint8_t> id_bytes;
  for (const SegmentPart& part : parts) {
    const Segment& segment = *part.segment;
    WEFT_REQUIRE(segment.codec() == head.codec() && segment.rerank() == head.rerank() &&
                     segment.dim() == head.dim() && segment.has_codes() == head.has_codes(),
                 kBad, segment.path(), ": stores something else than ", head.path());
    for (const auto& [first, last] : part.runs) {
      WEFT_REQUIRE(first < last && last <= segment.doc_count(), kBad, segment.path(),
                   ": no documents ", first, "..", last);
      for (uint32_t doc = first; doc < last; ++doc) {
        const std::string_view id = segment.id(doc);
        id_bytes.insert(id_bytes.end(), id.begin(), id.end());
        id_offsets.push_back(id_bytes.size());
        doc_offsets.push_back(doc_offsets.back() + segment.length(doc));
      }
    }
  }
  const Codec* codec = head.has_codes() ? head.codec() : nullptr;
  SegmentFile out(std::move(file), head.dim(), codec, head.rerank(), doc_offsets,
                  {id_bytes, id_offsets});
  const size_t padded = codec ? codec->padded_dim() : 0;
  const size_t code_bytes = codec ? padded * codec->nbits() / 8 : 0;
  uint64_t done = 0;
  for (const SegmentPart& part : parts) {
    const Segment& of = *part.segment;
    for (const auto& [first_doc, last_doc] : part.runs) {
      const uint64_t first = of.doc_offsets()[first_doc];
      const uint64_t n = of.doc_offsets()[last_doc] - first;
      if (codec != nullptr) {
        out.append_codes(tokens(of.parents(), first, n), tokens(of.children(), first, n),
                         tokens(of.steps(), first, n), tokens(of.multipliers(), first, n),
                         tokens(of.codes(), first, n, code_bytes));
      }
      if (out.has_plane()) {
        out.append_plane(tokens(of.plane(), first, n, padded / 2),
                         tokens(of.plane_multipliers(), first, n));
      }
      if (out.has_rows()) {
        out.append_rows(tokens(of.rows(), first, n, of.dim()));
      }
      done += n;
    }
    if (progress) {
      progress("merge", done, doc_offsets.back());
    }
  }
  return out.finish();
}

}  // namespace weft
