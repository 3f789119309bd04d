// SPDX-License-Identifier: Apache-2.0
#include "search/searcher.h"

#include <algorithm>
#include <bit>

#include "base/parallel.h"
#include "search/interact.h"
#include "search/searcher.inl"

namespace weft {

namespace {

/// Nanoseconds per unit of work with 32 query tokens of 128 dims on one core: only their ratios matter,
/// they decide between the pruned and the exhaustive path (docs/performance.md, "Cost model").
constexpr double kPostingCost = 2.0;
constexpr double kInteractCost = 3.0;
constexpr double kSkimCost = 10.0;
constexpr double kRefineCost = 27.0;
constexpr double kScanCost = 22.0;
constexpr double kCentroidCost = 22.0;
// Documents of one token, for a query of one: 128 dims of each where all are scanned, and one scored on
// its own, whose codes are little of the work.
constexpr double kRowCost = 5.0;
constexpr double kLoneCost = 300.0;

std::vector<Candidate> every_document(std::span<const BitmapView> matching, uint64_t n_matching) {
  std::vector<Candidate> all;
  all.reserve(n_matching);
  for (uint32_t s = 0; s < matching.size(); ++s) {
    for (uint32_t word = 0; word < matching[s].word_count(); ++word) {
      for (uint64_t bits = matching[s].words[word]; bits != 0; bits &= bits - 1) {
        all.push_back({{s, 64 * word + static_cast<uint32_t>(std::countr_zero(bits))}, 0});
      }
    }
  }
  return all;
}

}  // namespace

Searcher::Searcher(std::vector<std::shared_ptr<const Segment>> segments,
                   std::shared_ptr<const Codec> codec, size_t threads,
                   std::span<const BitmapView> deleted, std::shared_ptr<const Resident> resident)
    : segments_(std::move(segments)),
      codec_(std::move(codec)),
      resident_(std::move(resident)),
      threads_(threads == 0 ? default_threads() : threads) {
  if (codec_ != nullptr) {
    dim_ = codec_->dim();
    list_lengths_.assign(codec_->n_fine(), 0);
  }
  WEFT_REQUIRE(deleted.empty() || deleted.size() == segments_.size(), ErrorCode::invalid_argument,
               "deleted: expected one bitmap per segment (", segments_.size(), "), found ",
               deleted.size());
  for (size_t s = 0; s < segments_.size(); ++s) {
    const auto& segment = segments_[s];
    require_codes(*segment, codec_.get());
    WEFT_REQUIRE(dim_ == 0 || dim_ == segment->dim(), ErrorCode::invalid_argument, segment->path(),
                 ": dim ", segment->dim(), ", expected ", dim_);
    dim_ = segment->dim();
    add_segment(*segment, deleted.empty() ? BitmapView{} : deleted[s]);
  }
  for (size_t s = 0; s < segments_.size(); ++s) {
    matching_.push_back({matching_words_[s].data(), segments_[s]->doc_count()});
  }
  n_matching_ = count(matching_);
}

void Searcher::add_segment(const Segment& segment, BitmapView deleted) {
  any_deleted_ = any_deleted_ || deleted.words != nullptr;
  n_docs_ += segment.doc_count();
  auto& words = matching_words_.emplace_back(BitmapView{nullptr, segment.doc_count()}.word_count());
  for (uint32_t doc = 0; doc < segment.doc_count(); ++doc) {
    if (segment.length(doc) > 0 && (deleted.words == nullptr || !deleted.test(doc))) {
      words[doc / 64] |= uint64_t{1} << (doc % 64);
      n_tokens_ += segment.length(doc);
      longest_doc_ = std::max(longest_doc_, segment.length(doc));
    }
  }
  const auto offsets = segment.list_offsets();
  for (size_t fine = 0; fine < list_lengths_.size(); ++fine) {
    list_lengths_[fine] += static_cast<uint32_t>(offsets[fine + 1] - offsets[fine]);
  }
}

Searcher::~Searcher() = default;

void Searcher::require_query(MatrixView<const float> query) const {
  WEFT_REQUIRE(query.rows >= 1, ErrorCode::invalid_argument,
               "query is empty: expected at least one token embedding");
  WEFT_REQUIRE(dim_ == 0 || query.cols == dim_, ErrorCode::invalid_argument, "query has dim ",
               query.cols, ": expected ", dim_);
}

void Searcher::require_doc(uint32_t segment, uint32_t doc) const {
  WEFT_REQUIRE(segment < segments_.size() && doc < segments_[segment]->doc_count(),
               ErrorCode::invalid_argument, "no document ", doc, " in segment ", segment);
}

bool Searcher::rows_alone(const PreparedQuery& query) const noexcept {
  return codec_ != nullptr && query.n_tokens == 1 && longest_doc_ == 1;
}

bool Searcher::scan_is_cheaper(uint64_t n_matching) const noexcept {
  return scan_cost() <= static_cast<double>(n_matching) * kLoneCost;
}

double Searcher::scan_cost() const noexcept {
  return static_cast<double>(n_docs_ * codec_->padded_dim()) / 128.0 * kRowCost;
}

bool Searcher::exhaustive_is_cheaper(const PreparedQuery& query, const SearchParams& params,
                                     uint64_t n_matching) const {
  const auto n_docs = static_cast<double>(n_matching);
  const double length =
      static_cast<double>(n_tokens_) / static_cast<double>(std::max<uint64_t>(n_matching_, 1));
  const double width = static_cast<double>(query.exact.view().lanes()) / 32.0 *
                       static_cast<double>(codec_->padded_dim()) / 128.0;
  const double opened = std::min<double>(codec_->n_coarse(),
                                         static_cast<double>(query.merged.size()) * params.nprobe);
  const double centroids =
      codec_->n_coarse() + opened * codec_->n_fine() / static_cast<double>(codec_->n_coarse());
  const double candidates = std::min<double>(params.ncandidates, n_docs);
  const double skimmed = std::min<double>(params.nskim, n_docs);
  const double refined = std::min<double>(params.nrefine, n_docs);
  const auto of_each = [&](double n, double token_cost) {
    return n * (rows_alone(query) ? kLoneCost : length * token_cost * width);
  };
  // A filter makes probe read on, at most all that the opened cells hold.
  const double survivors = std::min(params.budget, params.ncandidates);
  const double readable = opened / codec_->n_coarse() * static_cast<double>(n_tokens_);
  const double postings = std::max<double>(
      params.budget, std::min(survivors * static_cast<double>(n_matching_) / n_docs, readable));
  const double pruned = centroids * kCentroidCost * width + postings * kPostingCost +
                        static_cast<double>(n_docs_) * 0.1 + candidates * length * kInteractCost +
                        of_each(skimmed, kSkimCost) + of_each(refined, kRefineCost);
  const double scanned =
      rows_alone(query) && scan_is_cheaper(n_matching) ? scan_cost() : of_each(n_docs, kScanCost);
  const double exhaustive =
      std::min<double>(codec_->n_fine(), n_docs * length) * kCentroidCost * width + scanned;
  return exhaustive <= pruned;
}

std::span<const BitmapView> Searcher::matching(std::span<const BitmapView> allow,
                                               Scratch& scratch) const {
  if (allow.empty()) {
    return matching_;
  }
  scratch.allowed_words = matching_words_;
  scratch.allowed = matching_;
  for (size_t s = 0; s < allow.size(); ++s) {
    auto& words = scratch.allowed_words[s];
    for (size_t word = 0; allow[s].words != nullptr && word < words.size(); ++word) {
      words[word] &= allow[s].words[word];
    }
    scratch.allowed[s].words = words.data();
  }
  return scratch.allowed;
}

void Searcher::require_search(MatrixView<const float> query, uint32_t k, const SearchParams& params,
                              std::span<const BitmapView> allow) const {
  require_query(query);
  validate(params, k);
  WEFT_REQUIRE(allow.empty() || allow.size() == segments_.size(), ErrorCode::invalid_argument,
               "allow: expected one bitmap per segment (", segments_.size(), "), found ",
               allow.size());
}

size_t Searcher::rerank_count(const SearchParams& params, size_t n_candidates) const {
  const bool has_better_form =
      codec_ != nullptr && !segments_.empty() && best_scorer(*segments_.front()) != Scorer::codes;
  return has_better_form ? std::min<size_t>(params.nrerank, n_candidates) : 0;
}

Found Searcher::search_with(MatrixView<const float> query, uint32_t k, const SearchParams& params,
                            std::span<const BitmapView> allow, size_t threads, Scratch& scratch,
                            const std::function<bool()>& poll, Trace* trace) const {
  require_search(query, k, params, allow);
  Found found;
  StageClock clock(found);
  const PreparedQuery prepared(query, codec_.get());
  if (codec_ != nullptr) {
    scratch.base.start(prepared, *codec_);
  }
  clock.finished(Stage::prepare);
  if (scratch.rank.score.size() < threads) {
    scratch.rank.score.resize(threads);
  }

  std::vector<Candidate> candidates;
  const auto matches = matching(allow, scratch);
  found.n_matching = allow.empty() ? n_matching_ : count(matches);
  found.exhaustive = codec_ == nullptr || params.path == SearchPath::exhaustive ||
                     (params.path == SearchPath::cheaper &&
                      exhaustive_is_cheaper(prepared, params, found.n_matching));
  if (!found.exhaustive) {
    const CountPostings surviving = [&](std::span<const uint32_t> fines) {
      return count_postings(segments_, matches, fines);
    };
    probe(prepared, *codec_, list_lengths_, params, threads, scratch.base, scratch.probe,
          allow.empty() ? CountPostings{} : surviving);
    found.n_postings = scratch.probe.n_postings;
    clock.finished(Stage::probe);
    const bool all = allow.empty() && !any_deleted_;
    candidates = gather(segments_, scratch.probe, all ? std::span<const BitmapView>{} : matches,
                        params.ncandidates, scratch.accumulators);
    clock.finished(Stage::gather);
    found.n_candidates = candidates.size();
    // Too few documents met to fill k, though there are more: score them all instead.
    found.exhaustive = candidates.size() < std::min<uint64_t>(k, found.n_matching);
    if (trace != nullptr) {
      *trace = {prepared.merged, scratch.probe.lists, scratch.probe.list_ends, candidates, {}, {}};
    }
    if (!found.exhaustive) {
      if (candidates.size() > params.nrefine) {
        interact(segments_, *codec_, scratch.probe, candidates,
                 std::max(params.nskim, params.nrefine), scratch.rank.table_best, threads);
      }
      clock.finished(Stage::interact);
      if (trace != nullptr) {
        trace->interacted = candidates;
      }
    }
  }
  const bool scans = found.exhaustive && rows_alone(prepared) &&
                     scan_is_cheaper(found.n_matching) &&
                     std::max<size_t>(rerank_count(params, found.n_matching), k) < found.n_matching;
  if (found.exhaustive) {
    found.n_candidates = found.n_matching;
    if (!scans) {
      candidates = every_document(matches, found.n_matching);
    }
  }

  // A pruned search notes in refine what the rerank has to read; an exhaustive one would have to for every
  // document. A rerank that takes every candidate makes the refine before it idle.
  Ranker ranker(segments_, prepared, scratch.probe, scratch.base, scratch.rank, threads, poll);
  if (!found.exhaustive && params.nskim > 0 && candidates.size() > params.nrefine) {
    found.n_skimmed = candidates.size();
    ranker.skim(candidates, params.nrefine);
    clock.finished(Stage::skim);
    if (trace != nullptr) {
      trace->skimmed.assign(ranker.best().begin(), ranker.best().end());
    }
  }
  const size_t n_rerank =
      rerank_count(params, scans ? static_cast<size_t>(found.n_matching) : candidates.size());
  const bool refines = scans || (codec_ != nullptr && n_rerank < candidates.size());
  if (scans) {
    found.n_refined = found.n_matching;
    ranker.scan(matches, candidates, std::max<size_t>(n_rerank, k));
    clock.finished(Stage::refine);
  } else if (refines) {
    found.n_refined = candidates.size();
    ranker.refine(candidates, std::max<size_t>(n_rerank, k), n_rerank > 0 && !found.exhaustive);
    clock.finished(Stage::refine);
  }
  if (codec_ == nullptr || n_rerank > 0) {
    found.n_reranked = candidates.size();
    ranker.rerank(candidates, k, refines && !found.exhaustive);
    clock.finished(Stage::rerank);
  }
  for (const Ranker::Scored& one : ranker.best()) {
    found.docs.push_back(one.ref);
    found.scores.push_back(one.score);
  }
  return found;
}

Found Searcher::search(MatrixView<const float> query, uint32_t k, const SearchParams& params,
                       std::span<const BitmapView> allow, const std::function<bool()>& poll,
                       Trace* trace) const {
  if (resident_ != nullptr) {
    const std::array<uint64_t, 2> bounds{0, query.rows};
    return std::move(search_resident({query, bounds}, k, params, allow, poll).front());
  }
  const Lease scratch(*this);
  return search_with(query, k, params, allow, threads_, *scratch, poll, trace);
}

std::vector<Found> Searcher::search_batch(RaggedView<const float> queries, uint32_t k,
                                          const SearchParams& params,
                                          std::span<const BitmapView> allow,
                                          const std::function<bool()>& poll) const {
  for (size_t i = 0; i < queries.size(); ++i) {
    WEFT_REQUIRE(queries.length(i) > 0, ErrorCode::invalid_argument, "query ", i,
                 " of the batch is empty: expected at least one token embedding");
  }
  if (resident_ != nullptr) {
    return search_resident(queries, k, params, allow, poll);
  }
  std::vector<Found> found(queries.size());
  parallel_for(
      queries.size(), threads_,
      [&](size_t begin, size_t end, size_t) {
        const Lease scratch(*this);
        for (size_t i = begin; i < end; ++i) {
          found[i] = search_with(queries[i], k, params, allow, 1, *scratch, {}, nullptr);
        }
      },
      1, poll);
  return found;
}

void Searcher::with_scorer(
    MatrixView<const float> query,
    const std::function<void(const DocumentScorer&, ScoreScratch&)>& use) const {
  require_query(query);
  const Lease lease(*this);
  Scratch& scratch = *lease;
  const PreparedQuery prepared(query, codec_.get());
  if (codec_ != nullptr) {
    scratch.base.start(prepared, *codec_);
  }
  if (scratch.rank.score.empty()) {
    scratch.rank.score.resize(1);
  }
  use(DocumentScorer(prepared, scratch.base), scratch.rank.score[0]);
}

void Searcher::score(MatrixView<const float> query, uint32_t segment,
                     std::span<const uint32_t> docs, std::span<float> scores) const {
  require_query(query);
  std::vector<Candidate> candidates;
  for (const uint32_t doc : docs) {
    require_doc(segment, doc);
    candidates.push_back({{segment, doc}, 0});
  }
  const Lease lease(*this);
  Scratch& scratch = *lease;
  const PreparedQuery prepared(query, codec_.get());
  if (codec_ != nullptr) {
    scratch.base.start(prepared, *codec_);
  }
  if (scratch.rank.score.size() < threads_) {
    scratch.rank.score.resize(threads_);
  }
  const std::function<bool()> poll;  // the ranker refers to it
  Ranker ranker(segments_, prepared, scratch.probe, scratch.base, scratch.rank, threads_, poll);
  ranker.score(candidates, scores);
}

void Searcher::align(MatrixView<const float> query, uint32_t segment, uint32_t doc,
                     std::span<uint32_t> tokens, std::span<float> similarities) const {
  require_doc(segment, doc);
  with_scorer(query, [&](const DocumentScorer& scorer, ScoreScratch& scratch) {
    const Segment& of = *segments_[segment];
    scorer.align(of, doc, best_scorer(of), scratch, tokens, similarities);
  });
}

}  // namespace weft
