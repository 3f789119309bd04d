// SPDX-License-Identifier: Apache-2.0
//
// The native module's side of searching on a device: what the C interface takes and gives, behind
// search/backend.h.
#include <algorithm>
#include <iterator>

#include "cuda/plug_in.h"
#include "search/base_scores.h"
#include "search/probe.h"

namespace weft {

namespace {

constexpr uint32_t kDocsAligned = 64;  // documents of a segment begin at a word of a bitmap

std::string gigabytes(uint64_t bytes) {
  const uint64_t hundredths = (bytes + 5'000'000) / 10'000'000;
  return concat(hundredths / 100, ".", hundredths / 10 % 10, hundredths % 10, " GB");
}

weft_codec to_c(const Codec& codec) {
  return {.struct_size = sizeof(weft_codec),
          .nbits = codec.nbits(),
          .dim = static_cast<uint32_t>(codec.padded_dim()),
          .n_coarse = codec.n_coarse(),
          .n_fine = codec.n_fine(),
          .fine = codec.fine().data(),
          .child_offsets = codec.child_offsets().data(),
          .multiplier_least = codec.multiplier_grid().least,
          .multiplier_step = codec.multiplier_grid().step,
          .coarse = codec.coarse().data()};
}

/// For each segment the place of its ids among those of all. Each segment's own order is merged in: of
/// a damaged file, whose ids are not sorted, something comes of that, which is not so for a sort.
std::vector<std::vector<uint32_t>> ranks_of(
    std::span<const std::shared_ptr<const Segment>> segments) {
  std::vector<DocRef> all, merged;
  std::vector<std::vector<uint32_t>> ranks;
  for (uint32_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = *segments[s];
    ranks.emplace_back(segment.doc_count());
    std::vector<DocRef> own;
    for (uint32_t doc = 0; doc < segment.doc_count(); ++doc) {
      own.push_back({s, doc});
    }
    std::ranges::sort(own, {}, [&](DocRef ref) { return segment.id_rank(ref.doc); });
    merged.clear();
    std::ranges::merge(all, own, std::back_inserter(merged), [&](DocRef a, DocRef b) {
      return segments[a.segment]->id(a.doc) < segments[b.segment]->id(b.doc);
    });
    all.swap(merged);
  }
  for (uint32_t rank = 0; rank < all.size(); ++rank) {
    ranks[all[rank].segment][all[rank].doc] = rank;
  }
  return ranks;
}

std::vector<weft_segment> to_c(std::span<const std::shared_ptr<const Segment>> segments,
                               const std::vector<std::vector<uint32_t>>& ranks) {
  std::vector<weft_segment> out;
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = *segments[s];
    out.push_back({.struct_size = sizeof(weft_segment),
                   .n_docs = segment.doc_count(),
                   .n_tokens = segment.token_count(),
                   .offsets = segment.doc_offsets().data(),
                   .parents = segment.parents().data(),
                   .steps = segment.steps().data(),
                   .children = segment.children().data(),
                   .multipliers = segment.multipliers().data(),
                   .codes = segment.codes().data(),
                   .ranks = ranks.empty() ? nullptr : ranks[s].data(),
                   .list_offsets = segment.list_offsets().data(),
                   .postings = segment.postings(),
                   .posting_width = segment.width()});
  }
  return out;
}

/// A query as the plug-in takes it, and the rows that it borrows.
struct PlainQuery {
  std::vector<int8_t> rows;
  weft_query query{};

  PlainQuery(const PreparedQuery& prepared, const Codec& codec) {
    const kernels::ByteTile tile = prepared.rotated.view();
    rows.resize(prepared.n_tokens * tile.dim);
    for (size_t i = 0; i < prepared.n_tokens; ++i) {
      const int8_t* from =
          tile.data + i / kernels::kLanes * tile.dim * kernels::kLanes + i % kernels::kLanes * 4;
      for (size_t d = 0; d < tile.dim; d += 4, from += 4 * kernels::kLanes) {
        std::copy_n(from, 4, rows.data() + i * tile.dim + d);
      }
    }
    const BaseGrid grid = base_grid(prepared, codec);
    query = {.struct_size = sizeof query,
             .n_tokens = static_cast<uint32_t>(prepared.n_tokens),
             .rows = rows.data(),
             .base_shift = grid.shift,
             .base_unit = grid.unit,
             .code_unit = 0.5f * prepared.scale};
  }
};

class PlugInResident final : public Resident {
 public:
  PlugInResident(const weft_backend& table, int number,
                 std::span<const std::shared_ptr<const Segment>> segments, const Codec& codec)
      : table_(table), name_(concat(table.name, ":", number)), codec_(codec) {
    for (const auto& segment : segments) {
      starts_.push_back(n_docs_);
      n_docs_ += (uint64_t{segment->doc_count()} + kDocsAligned - 1) / kDocsAligned * kDocsAligned;
    }
    const auto ranks = ranks_of(segments);
    const auto arrays = to_c(segments, ranks);
    const weft_codec plain = to_c(codec);
    weft_error error{};
    check(table.load(number, &plain, arrays.data(), static_cast<uint32_t>(arrays.size()),
                     &resident_, &error),
          error);
  }
  ~PlugInResident() override { table_.unload(resident_); }
  PlugInResident(const PlugInResident&) = delete;
  PlugInResident& operator=(const PlugInResident&) = delete;

  const std::string& device() const noexcept override { return name_; }

  std::vector<std::vector<ScannedDoc>> scan(std::span<const PreparedQuery* const> queries,
                                            size_t keep, std::span<const BitmapView> matching,
                                            const std::function<bool()>& poll) const override {
    std::vector<PlainQuery> plain;
    plain.reserve(queries.size());
    std::vector<weft_query> borrowed;
    for (const auto& query : queries) {
      borrowed.push_back(plain.emplace_back(*query, codec_).query);
    }
    const std::vector<uint64_t> allow = joined(matching);
    Results results(queries.size(), std::min<size_t>(keep, n_docs_));
    const weft_scan_args args{.struct_size = sizeof args,
                              .n_queries = static_cast<uint32_t>(queries.size()),
                              .queries = borrowed.data(),
                              .k = results.keep,
                              .allow = allow.data(),
                              .poll = ask,
                              .poll_data = const_cast<std::function<bool()>*>(&poll),
                              .docs = results.docs.data(),
                              .scores = results.scores.data(),
                              .counts = results.counts.data()};
    weft_error error{};
    check(table_.scan(resident_, &args, &error), error);

    std::vector<std::vector<ScannedDoc>> found(queries.size());
    for (size_t i = 0; i < queries.size(); ++i) {
      found[i] = docs_of(results, i, results.counts[i]);
    }
    return found;
  }

  std::vector<PrunedDocs> search(std::span<const PreparedQuery* const> queries,
                                 const SearchParams& params, size_t keep,
                                 std::span<const BitmapView> matching, bool is_filtered,
                                 const std::function<bool()>& poll) const override {
    std::vector<PlainQuery> plain;
    plain.reserve(queries.size());
    std::vector<weft_search_query> borrowed;
    std::vector<std::vector<uint32_t>> merged;  // lanes, then weights
    uint32_t floor_share = 0;
    for (const auto& query : queries) {
      const TableGrid grid = table_grid(*query, codec_, params);
      floor_share = grid.floor_share;
      const size_t n = query->merged.size();
      auto& tokens = merged.emplace_back(2 * n);
      for (size_t i = 0; i < n; ++i) {
        tokens[i] = query->merged[i].lane;
        tokens[n + i] = query->merged[i].weight;
      }
      borrowed.push_back({.struct_size = sizeof(weft_search_query),
                          .n_merged = static_cast<uint32_t>(n),
                          .query = plain.emplace_back(*query, codec_).query,
                          .lanes = tokens.data(),
                          .weights = tokens.data() + n,
                          .coarse_shift = grid.coarse_shift,
                          .coarse_factor = grid.coarse_factor,
                          .fine_factor = grid.fine_factor,
                          .gain_shift = grid.gain_shift});
    }
    const std::vector<uint64_t> allow = joined(matching);
    Results results(queries.size(), std::min<size_t>(keep, n_docs_));
    std::vector<weft_search_counts> counts(queries.size());
    const weft_search_args args{.struct_size = sizeof args,
                                .n_queries = static_cast<uint32_t>(queries.size()),
                                .queries = borrowed.data(),
                                .nprobe = params.nprobe,
                                .budget = params.budget,
                                .ncandidates = params.ncandidates,
                                .nskim = params.nskim,
                                .nrefine = params.nrefine,
                                .floor_share = floor_share,
                                .keep = results.keep,
                                .allow = matching.empty() ? nullptr : allow.data(),
                                .reads_on = is_filtered ? 1u : 0u,
                                .poll = ask,
                                .poll_data = const_cast<std::function<bool()>*>(&poll),
                                .docs = results.docs.data(),
                                .scores = results.scores.data(),
                                .counts = counts.data()};
    weft_error error{};
    check(table_.search(resident_, &args, &error), error);

    std::vector<PrunedDocs> found;
    for (size_t i = 0; i < queries.size(); ++i) {
      found.push_back({docs_of(results, i, counts[i].found), counts[i].postings, counts[i].gathered,
                       counts[i].skimmed, counts[i].refined});
    }
    return found;
  }

 private:
  struct Results {
    size_t keep;
    std::vector<uint32_t> docs;
    std::vector<float> scores;
    std::vector<uint64_t> counts;

    Results(size_t n_queries, size_t kept)
        : keep(kept), docs(n_queries * kept), scores(n_queries * kept), counts(n_queries) {}
  };

  static int32_t ask(void* data) {
    const auto& asked = *static_cast<const std::function<bool()>*>(data);
    return asked && asked() ? 1 : 0;
  }

  /// The bitmaps of all segments in one.
  static std::vector<uint64_t> joined(std::span<const BitmapView> bitmaps) {
    std::vector<uint64_t> words;
    for (const BitmapView& bitmap : bitmaps) {
      words.insert(words.end(), bitmap.words, bitmap.words + bitmap.word_count());
    }
    return words;
  }

  /// The n best documents of query i.
  std::vector<ScannedDoc> docs_of(const Results& results, size_t i, uint64_t n) const {
    std::vector<ScannedDoc> found;
    for (size_t j = i * results.keep; j < i * results.keep + n; ++j) {
      const auto after = std::upper_bound(starts_.begin(), starts_.end(), results.docs[j]);
      const auto segment = static_cast<uint32_t>(after - starts_.begin()) - 1;
      const DocRef ref{segment, results.docs[j] - static_cast<uint32_t>(starts_[segment])};
      found.push_back({ref, results.scores[j]});
    }
    return found;
  }

  const weft_backend& table_;
  std::string name_;
  const Codec& codec_;
  std::vector<uint64_t> starts_;  ///< number of each segment's first document
  uint64_t n_docs_ = 0;
  weft_resident* resident_ = nullptr;
};

}  // namespace

std::shared_ptr<const Resident> make_resident(
    const std::string& device, std::span<const std::shared_ptr<const Segment>> segments,
    const Codec* codec) {
  if (device == "cpu") {
    return nullptr;
  }
  const bool decides = device == "auto";
  if (decides && codec == nullptr) {
    return nullptr;
  }
  const PlugIn plug = plug_in();
  if (decides && plug.state != "ready") {
    return nullptr;
  }
  const int number = decides ? 0 : device_number(plug, device);
  WEFT_REQUIRE(
      codec != nullptr, ErrorCode::device, "device=\"", device,
      "\": the index has no codes yet, only rows, which the CPU searches; see codec_tokens");
  for (const auto& segment : segments) {
    require_codes(*segment, codec);
  }

  try {
    const DeviceInfo found = describe(*plug.table, number);
    const weft_codec plain = to_c(*codec);
    const auto arrays = to_c(segments, {});
    uint64_t needed = 0;
    weft_error error{};
    check(plug.table->plan(&plain, arrays.data(), static_cast<uint32_t>(arrays.size()), &needed,
                           &error),
          error);
    WEFT_REQUIRE(needed <= found.free_bytes, ErrorCode::out_of_memory, "device='", device,
                 "': the codes take ", gigabytes(needed), ", ", gigabytes(found.free_bytes),
                 " are free");
    return std::make_shared<PlugInResident>(*plug.table, number, segments, *codec);
  } catch (const Error& error) {
    const bool unusable =
        error.code() == ErrorCode::device || error.code() == ErrorCode::out_of_memory;
    if (decides && unusable) {  // too old, taken by another, or filled since
      return nullptr;
    }
    throw;
  }
}

}  // namespace weft
