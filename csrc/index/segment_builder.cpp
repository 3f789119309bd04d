// SPDX-License-Identifier: Apache-2.0
#include "index/segment_builder.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "index/inverted_lists.h"

namespace weft {

namespace {

constexpr size_t kBlockTokens = 4'096;  // one parallel_for index
constexpr size_t kWindowBlocks = 32;    // blocks encoded before they are written: about 9 MB
constexpr uint64_t kMaxTokens = uint64_t{1} << 24;

/// Names the arrays of a segment once: specs in file order, and where each went.
class SegmentFile {
 public:
  size_t add(const char* name, DType dtype, std::vector<uint64_t> shape) {
    specs_.push_back({name, dtype, std::move(shape)});
    return specs_.size() - 1;
  }
  ContainerWriter open(FileWriter file) const { return ContainerWriter(std::move(file), specs_); }

 private:
  std::vector<ArraySpec> specs_;
};

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

}  // namespace

SegmentStats write_segment(FileWriter file, std::shared_ptr<const Codec> codec,
                           RaggedView<const uint16_t> docs, const IdTable& ids, Rerank rerank,
                           size_t threads, const Progress& progress) {
  const size_t n_docs = docs.size();
  const size_t n = docs.tokens.rows;
  const size_t dim = docs.tokens.cols;
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(n <= kMaxTokens && n_docs <= kMaxTokens, kBad, "segment of ", n, " tokens in ",
               n_docs, " documents: expected at most ", kMaxTokens, " of each");
  WEFT_REQUIRE(ids.offsets.size() == n_docs + 1 && ids.offsets.back() == ids.bytes.size(), kBad,
               "id_offsets: expected ", n_docs + 1, " entries ending at ", ids.bytes.size());
  WEFT_REQUIRE(docs.tokens.stride == dim, kBad, "rows: expected contiguous rows of ", dim,
               " values");
  WEFT_REQUIRE(codec == nullptr || codec->dim() == dim, kBad, "rows have dim ", dim,
               ", the codec has ", codec ? codec->dim() : 0);
  WEFT_REQUIRE(rerank != Rerank::plane || codec == nullptr || codec->nbits() == 4, kBad,
               "rerank=\"plane\": expected nbits=4, found nbits=", codec ? codec->nbits() : 0);
  if (codec == nullptr) {
    rerank = Rerank::f16;
  }
  const std::vector<uint32_t> order = sorted_by_id(ids, n_docs);

  SegmentFile layout;
  const size_t meta = layout.add("meta", DType::s64, {SegmentMeta::kCount});
  const size_t doc_offsets = layout.add("doc_offsets", DType::u64, {n_docs + 1});
  const size_t id_offsets = layout.add("id_offsets", DType::u64, {n_docs + 1});
  const size_t id_bytes = layout.add("id_bytes", DType::u8, {ids.bytes.size()});
  const size_t id_order = layout.add("id_order", DType::u32, {n_docs});
  const size_t rows = rerank == Rerank::f16 ? layout.add("rows", DType::f16, {n, dim}) : 0;
  size_t parents = 0, children = 0, steps = 0, multipliers = 0, codes = 0, plane = 0,
         plane_multipliers = 0, list_offsets = 0, postings = 0;
  if (codec != nullptr) {
    const size_t padded = codec->padded_dim();
    parents = layout.add("parents", DType::u16, {n});
    children = layout.add("children", DType::u8, {n});
    steps = layout.add("steps", DType::f16, {n});
    multipliers = layout.add("multipliers", DType::u8, {n});
    codes = layout.add("codes", DType::u8, {n, padded * codec->nbits() / 8});
    if (rerank == Rerank::plane) {
      plane = layout.add("plane", DType::u8, {n, padded / 2});
      plane_multipliers = layout.add("plane_multipliers", DType::u8, {n});
    }
    list_offsets = layout.add("list_offsets", DType::u64, {codec->n_fine() + uint64_t{1}});
    postings = layout.add("postings", DType::u8, {0});  // its size is known at the end
  }
  ContainerWriter out = layout.open(std::move(file));
  const auto append = [&](size_t array, const auto& values) {
    out.append(array, values.data(), values.size() * sizeof(values[0]));
  };

  const int64_t header[SegmentMeta::kCount] = {
      1,
      static_cast<int64_t>(dim),
      codec ? static_cast<int64_t>(codec->padded_dim()) : 0,
      codec ? static_cast<int64_t>(codec->nbits()) : 0,
      static_cast<int64_t>(rerank),
      static_cast<int64_t>(n_docs),
      static_cast<int64_t>(n),
      codec ? static_cast<int64_t>(codec->checksum()) : 0};
  out.append(meta, header, sizeof header);
  append(doc_offsets, docs.offsets);
  append(id_offsets, ids.offsets);
  append(id_bytes, ids.bytes);
  append(id_order, order);

  SegmentStats stats{.n_docs = n_docs, .n_tokens = n};
  std::vector<uint16_t> all_parents;
  std::vector<uint8_t> all_children;
  if (codec != nullptr) {
    all_parents.reserve(n);
    all_children.reserve(n);
  }
  const size_t window_tokens = kBlockTokens * kWindowBlocks;
  std::vector<EncodedTokens> window(codec ? kWindowBlocks : 0);
  for (size_t first = 0; first < n; first += window_tokens) {
    const size_t count = std::min(window_tokens, n - first);
    const size_t blocks = (count + kBlockTokens - 1) / kBlockTokens;
    if (codec != nullptr) {
      parallel_for(blocks, threads, [&](size_t begin, size_t end, size_t) {
        for (size_t block = begin; block < end; ++block) {
          const size_t from = block * kBlockTokens;
          codec->encode(docs.tokens.slice(first + from, std::min(kBlockTokens, count - from)),
                        rerank == Rerank::plane, window[block]);
        }
      });
      for (size_t block = 0; block < blocks; ++block) {
        const EncodedTokens& encoded = window[block];
        append(parents, encoded.parents);
        append(children, encoded.children);
        append(steps, encoded.steps);
        append(multipliers, encoded.multipliers);
        append(codes, encoded.codes);
        if (rerank == Rerank::plane) {
          append(plane, encoded.plane);
          append(plane_multipliers, encoded.plane_multipliers);
        }
        all_parents.insert(all_parents.end(), encoded.parents.begin(), encoded.parents.end());
        all_children.insert(all_children.end(), encoded.children.begin(), encoded.children.end());
      }
    }
    if (rerank == Rerank::f16) {
      out.append(rows, docs.tokens.row(first), count * dim * sizeof(uint16_t));
    }
    if (progress) {
      progress("write", first + count, n);
    }
  }
  if (codec != nullptr) {
    const InvertedLists lists =
        build_lists(all_parents, all_children, docs.offsets, codec->child_offsets());
    stats.n_postings = lists.posting_count();
    append(list_offsets, lists.offsets);
    out.set_last_shape({lists.postings.size()});
    append(postings, lists.postings);
  }
  stats.checksum = out.finish();
  stats.n_bytes = out.file_bytes();
  return stats;
}

}  // namespace weft
