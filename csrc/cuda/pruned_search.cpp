// SPDX-License-Identifier: Apache-2.0
//
// The host's part of a pruned search: lists made ready for a device, memory for some queries at a time,
// and the order of the stages. Nothing here waits for a stage before it gives the next.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>

#include "base/checked.h"
#include "base/error.h"
#include "cuda/resident.h"

namespace weft::cuda {

namespace {

constexpr size_t kPostingsUploaded = 1 << 20;  // at a time
constexpr size_t kWorkspaceBytes = size_t{1} << 30;
constexpr uint32_t kMostQueries = 256;    // at once
constexpr uint32_t kMostTokens = 65'000;  // 16 bits of a document's word
constexpr uint32_t kTokensRounded = 4;    // so that fewer shapes of launches are kept
constexpr size_t kAligned = 256;

uint64_t posting_count(const weft_segment& segment, uint32_t n_fine) {
  return segment.list_offsets == nullptr ? 0 : segment.list_offsets[n_fine];
}

uint64_t posting_count(const weft_codec& codec, const weft_segment* segments, uint32_t n_segments) {
  uint64_t n = 0;
  for (const weft_segment* s = segments; s < segments + n_segments; ++s) {
    n += posting_count(*s, codec.n_fine);
  }
  return n;
}

/// Arrays in one memory, one after another.
class Layout {
 public:
  /// Bytes up to and with this array.
  template <class T>
  void add(T*& array, uint64_t n) {
    at_ = (at_ + kAligned - 1) / kAligned * kAligned;
    if (base_ != nullptr) {
      array = reinterpret_cast<T*>(base_ + at_);
    }
    at_ += checked_mul(n, sizeof(T));
  }
  size_t bytes() const { return at_; }
  /// Starts again, over memory.
  void place(char* base) {
    base_ = base;
    at_ = 0;
  }

 private:
  char* base_ = nullptr;
  size_t at_ = 0;
};

/// The arrays of n queries.
void lay_out(Layout& layout, Pruned& all, uint64_t n) {
  const uint64_t n_cells = all.tree.n_cells, merged = n * all.most_merged;
  layout.add(all.progress, n);
  layout.add(all.coarse, checked_mul(n * all.lanes, n_cells));
  layout.add(all.table, checked_mul(n * all.lanes, all.most_rows));
  layout.add(all.cells, n * (n_cells + 1));
  layout.add(all.opened, n * all.most_opened);
  layout.add(all.token_cells, checked_mul(merged, all.nprobe));
  layout.add(all.token_lists, merged);
  layout.add(all.lists, checked_mul(merged, all.most_lists));
  layout.add(all.met, n * all.all.n_docs);
  layout.add(all.boundary, n * all.all.n_docs);
  layout.add(all.bins, n * kBins);
  layout.add(all.found, n * all.ncandidates);
  layout.add(all.kept, n * all.ncandidates);
  layout.add(all.best, checked_mul(n * all.lanes, all.ncandidates));
  layout.add(all.scores, n * all.ncandidates);
  layout.add(all.keys, n * all.ncandidates);
}

/// Bytes of an array that begins where an array may.
size_t rounded(size_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

/// Queries as the device has them: one upload for all of it.
class Inputs {
 public:
  Inputs(std::span<const weft_search_query> queries, uint32_t dim) {
    for (const weft_search_query& from : queries) {
      PrunedQuery& query = queries_.emplace_back();
      query = {.passes = nullptr,
               .lanes = nullptr,
               .weights = nullptr,
               .n_passes = 0,
               .n_merged = from.n_merged,
               .cell_shift = from.coarse_shift,
               .cell_factor = from.coarse_factor,
               .fine_factor = from.fine_factor,
               .gain_shift = from.gain_shift};
      for (uint32_t begin = 0; begin < from.query.n_tokens; begin += kPassRows) {
        passes_.push_back(make_pass(from.query, dim, begin, rows_));
        ++query.n_passes;
      }
      tokens_.insert(tokens_.end(), from.lanes, from.lanes + from.n_merged);
      tokens_.insert(tokens_.end(), from.weights, from.weights + from.n_merged);
    }
  }

  const PrunedQuery* upload(Queue& queue, std::unique_ptr<Memory>& memory, uint32_t dim) {
    const size_t pass_words = size_t{dim} / 32 * kTiles * kWarp;
    const size_t passes_at = rounded(queries_.size() * sizeof(PrunedQuery));
    const size_t rows_at = passes_at + rounded(passes_.size() * sizeof(QueryPass));
    const size_t tokens_at = rows_at + rounded(rows_.size() * sizeof rows_[0]);
    std::vector<char> bytes(tokens_at + tokens_.size() * sizeof tokens_[0]);
    char* const device = grow<char>(queue, memory, bytes.size());

    const auto* const rows = reinterpret_cast<const Words<4>*>(device + rows_at);
    for (size_t i = 0; i < passes_.size(); ++i) {
      passes_[i].rows = rows + i * pass_words;
    }
    const auto* passes = reinterpret_cast<const QueryPass*>(device + passes_at);
    const auto* tokens = reinterpret_cast<const uint32_t*>(device + tokens_at);
    for (PrunedQuery& query : queries_) {
      query.passes = passes;
      query.lanes = tokens;
      query.weights = tokens + query.n_merged;
      passes += query.n_passes;
      tokens += 2 * query.n_merged;
    }
    std::memcpy(bytes.data(), queries_.data(), queries_.size() * sizeof queries_[0]);
    std::memcpy(bytes.data() + passes_at, passes_.data(), passes_.size() * sizeof passes_[0]);
    std::memcpy(bytes.data() + rows_at, rows_.data(), rows_.size() * sizeof rows_[0]);
    std::memcpy(bytes.data() + tokens_at, tokens_.data(), tokens_.size() * sizeof tokens_[0]);
    memory->upload(0, bytes.data(), bytes.size());
    return reinterpret_cast<const PrunedQuery*>(device);
  }

 private:
  std::vector<PrunedQuery> queries_;
  std::vector<QueryPass> passes_;
  std::vector<Words<4>> rows_;
  std::vector<uint32_t> tokens_;
};

void run_stages(Queue& queue, const Pruned& all) {
  for (const Stage stage : {Stage::score_cells, Stage::choose_cells, Stage::open_cells,
                            Stage::score_children, Stage::order_lists, Stage::spend_budget}) {
    queue.stage(stage, all);
  }
  for (uint32_t token = 0; token < all.most_merged; ++token) {
    queue.stage(Stage::gather, all, token);
  }
  for (const Stage stage :
       {Stage::tally, Stage::collect, Stage::settle, Stage::interact, Stage::keep_interacted}) {
    queue.stage(stage, all);
  }
  for (uint32_t pass = 0; pass < all.most_passes && all.skims != 0; ++pass) {
    queue.stage(Stage::skim, all, pass);
  }
  if (all.skims != 0) {
    queue.stage(Stage::keep_skimmed, all);
  }
  for (uint32_t pass = 0; pass < all.most_passes; ++pass) {
    queue.stage(Stage::refine, all, pass);
  }
}

}  // namespace

size_t PrunedSearch::bytes(const weft_codec& codec, const weft_segment* segments,
                           uint32_t n_segments) {
  if (codec.coarse == nullptr) {
    return 0;
  }
  const size_t n_cells = codec.n_coarse, n_fine = codec.n_fine;
  return (n_cells + 1) * codec.dim + (n_cells + 1) * sizeof(uint32_t) +
         (n_fine + 1) * (sizeof(uint32_t) + sizeof(uint64_t)) +
         posting_count(codec, segments, n_segments) * sizeof(uint32_t);
}

PrunedSearch::PrunedSearch(Queue& queue, const weft_codec& codec, const weft_segment* segments,
                           uint32_t n_segments, const Collection& all)
    : all_(all),
      nbits_(codec.nbits),
      cells_(queue, (size_t{codec.n_coarse} + 1) * codec.dim),
      children_(queue, (size_t{codec.n_coarse} + 1) * sizeof(uint32_t)),
      parents_(queue, (size_t{codec.n_fine} + 1) * sizeof(uint32_t)),
      offsets_(queue, (size_t{codec.n_fine} + 1) * sizeof(uint64_t)),
      postings_(queue, posting_count(codec, segments, n_segments) * sizeof(uint32_t)),
      tree_{.cells = cells_.as<int8_t>(),
            .children = children_.as<uint32_t>(),
            .parents = parents_.as<uint32_t>(),
            .offsets = offsets_.as<uint64_t>(),
            .postings = postings_.as<uint32_t>(),
            .n_cells = codec.n_coarse} {
  const size_t cell_bytes = size_t{codec.n_coarse} * codec.dim;
  const std::vector<int8_t> zeros(codec.dim);
  cells_.upload(0, codec.coarse, cell_bytes);
  cells_.upload(cell_bytes, zeros.data(), zeros.size());
  children_.upload(0, codec.child_offsets, children_.bytes());
  std::vector<uint32_t> parents;
  for (uint32_t cell = 0; cell < codec.n_coarse; ++cell) {
    const uint32_t n = codec.child_offsets[cell + 1] - codec.child_offsets[cell];
    most_children_ = std::max(most_children_, n);
    parents.resize(parents.size() + n, cell);
  }
  parents.push_back(codec.n_coarse);
  parents_.upload(0, parents.data(), parents_.bytes());

  // A list is that of every segment, one after another.
  std::vector<uint64_t> offsets{0};
  std::vector<uint32_t> postings;
  uint64_t uploaded = 0;
  const auto flush = [&] {
    postings_.upload(uploaded * sizeof(uint32_t), postings.data(),
                     postings.size() * sizeof(uint32_t));
    uploaded += postings.size();
    postings.clear();
  };
  for (uint32_t fine = 0; fine < codec.n_fine; ++fine) {
    uint32_t first_doc = 0;
    for (const weft_segment* s = segments; s < segments + n_segments; ++s) {
      for (uint64_t at = posting_count(*s, fine); at < posting_count(*s, fine + 1); ++at) {
        uint32_t doc = 0;
        std::memcpy(&doc, s->postings + at * s->posting_width, s->posting_width);
        postings.push_back(doc < s->n_docs ? first_doc + doc : all.n_docs);
      }
      first_doc += (s->n_docs + kDocsAligned - 1) / kDocsAligned * kDocsAligned;
    }
    offsets.push_back(uploaded + postings.size());
    if (postings.size() >= kPostingsUploaded) {
      flush();
    }
  }
  flush();
  offsets_.upload(0, offsets.data(), offsets_.bytes());
}

Pruned PrunedSearch::shape_of(const weft_search_args& args) const {
  Pruned all{};
  all.all = all_;
  all.tree = tree_;
  all.nbits = nbits_;
  all.nprobe = std::min(args.nprobe, tree_.n_cells);
  all.budget = args.budget;
  all.wanted_survivors = std::min(args.budget, args.ncandidates);
  all.floor_share = args.floor_share;
  all.ncandidates = std::min(args.ncandidates, all_.n_docs);
  all.ninteract = std::min(std::max(args.nskim, args.nrefine), all.ncandidates);
  all.nrefine = std::min(args.nrefine, all.ncandidates);
  all.skims = all.ninteract > all.nrefine ? 1 : 0;
  for (const weft_search_query& query : std::span(args.queries, args.n_queries)) {
    WEFT_REQUIRE(query.query.n_tokens <= kMostTokens, ErrorCode::invalid_argument,
                 "query: ", query.query.n_tokens, " tokens, expected at most ", kMostTokens,
                 " on a device");
    all.most_merged = std::max(all.most_merged, query.n_merged);
    all.most_passes = std::max(all.most_passes, (query.query.n_tokens + kPassRows - 1) / kPassRows);
  }
  all.most_merged = (all.most_merged + kTokensRounded - 1) / kTokensRounded * kTokensRounded;
  all.lanes = all.most_passes * kPassRows;
  const uint64_t opened = std::min<uint64_t>(uint64_t{all.most_merged} * all.nprobe, tree_.n_cells);
  const auto children = [&](uint64_t cells) {
    return static_cast<uint32_t>(std::min<uint64_t>(cells * most_children_, all_.n_fine));
  };
  all.most_opened = static_cast<uint32_t>(opened);
  all.most_rows = tree_.n_cells + 1 + children(opened);
  all.most_lists = children(all.nprobe);
  return all;
}

void PrunedSearch::search(Workspace& work, const weft_search_args& args,
                          const std::vector<uint32_t>& docs_by_rank) const {
  Pruned all = shape_of(args);
  all.allow = args.allow == nullptr ? nullptr : work.allow->as<uint64_t>();
  if (args.reads_on != 0) {
    all.survivors = grow<uint32_t>(work.queue, work.pruned.survivors, all_.n_fine);
    all.n_queries = 1;
    work.queue.stage(Stage::count_survivors, all);
  }
  Layout layout;
  lay_out(layout, all, 1);
  const size_t each = layout.bytes() + (all_.n_docs + size_t{1}) * sizeof(uint64_t);
  const auto at_once =
      static_cast<uint32_t>(std::clamp<size_t>(kWorkspaceBytes / each, 1, kMostQueries));
  for (uint32_t first = 0; first < args.n_queries; first += at_once) {
    if (args.poll != nullptr && args.poll(args.poll_data) != 0) {
      throw Error(ErrorCode::cancelled, "cancelled");
    }
    all.n_queries = std::min(at_once, args.n_queries - first);
    search_some(work, args, all, first, docs_by_rank);
  }
}

void PrunedSearch::search_some(Workspace& work, const weft_search_args& args, Pruned all,
                               uint32_t first, const std::vector<uint32_t>& docs_by_rank) const {
  const uint32_t n = all.n_queries;
  Layout layout;
  lay_out(layout, all, n);
  layout.place(grow<char>(work.queue, work.pruned.arrays, layout.bytes()));
  lay_out(layout, all, n);
  const size_t n_words = n * (all_.n_docs + size_t{1});
  auto& words = work.pruned.words;
  if (words == nullptr || words->bytes() < n_words * sizeof(uint64_t)) {
    grow<uint64_t>(work.queue, words, n_words);
    work.queue.clear(words->as<char>(), words->bytes());
  }
  all.words = words->as<uint64_t>();
  Inputs inputs({args.queries + first, n}, all_.dim);
  all.queries = inputs.upload(work.queue, work.pruned.inputs, all_.dim);
  work.queue.replay(all, [&] { run_stages(work.queue, all); });

  const auto keep = static_cast<uint32_t>(std::min<uint64_t>(args.keep, all.nrefine));
  std::vector<uint64_t> keys;
  select_keys(work,
              {.first = {.scores = nullptr,
                         .ranks = nullptr,
                         .keys = all.keys,
                         .kept = nullptr,
                         .n = all.nrefine,
                         .k = keep,
                         .width = 0},
               .scores_stride = 0,
               .keys_stride = all.ncandidates,
               .kept_stride = 0,
               .n_queries = n},
              keys);
  std::vector<Progress> progress(n);
  work.queue.download(progress.data(), all.progress, n * sizeof progress[0]);
  for (uint32_t i = 0; i < n; ++i) {
    const Progress& one = progress[i];
    const bool skimmed = all.skims != 0 && one.n_interacted > all.nrefine;
    const auto own = std::span(keys).subspan(size_t{i} * keep, keep);
    weft_search_counts& counts = args.counts[first + i];
    counts = {.postings = one.n_postings,
              .gathered = one.n_gathered,
              .skimmed = skimmed ? one.n_interacted : 0,
              .refined = all.skims != 0 ? one.n_skimmed : one.n_interacted,
              .found = static_cast<uint64_t>(std::ranges::lower_bound(own, kNoKey) - own.begin())};
    for (uint64_t j = 0; j < counts.found; ++j) {
      args.docs[(first + i) * args.keep + j] = docs_by_rank[static_cast<uint32_t>(own[j])];
      args.scores[(first + i) * args.keep + j] = score_of(own[j]);
    }
  }
}

}  // namespace weft::cuda
