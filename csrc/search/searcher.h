// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/bitmap.h"
#include "base/views.h"
#include "index/segment.h"
#include "search/backend.h"
#include "search/gather.h"
#include "search/params.h"
#include "search/probe.h"
#include "search/ranker.h"

namespace weft {

/// `device`: what a device does of the stages from probe to refine.
enum class Stage : uint8_t { prepare, probe, gather, interact, skim, refine, device, rerank };
inline constexpr size_t kStageCount = 8;
inline constexpr std::array<const char*, kStageCount> kStageNames = {
    "prepare", "probe", "gather", "interact", "skim", "refine", "device", "rerank"};

/// The answer to one query: best first, ties by id, and what it took.
struct Found {
  std::vector<DocRef> docs;
  std::vector<float> scores;
  uint64_t n_matching = 0;  ///< documents that may be returned: not empty, not deleted, and allowed
  bool exhaustive = false;
  std::array<double, kStageCount> milliseconds{};
  uint64_t n_postings = 0;
  uint64_t n_candidates = 0;
  uint64_t n_skimmed = 0;
  uint64_t n_refined = 0;
  uint64_t n_reranked = 0;
};

/// What each stage of one search handed to the next, for tests of the stages.
struct Trace {
  std::vector<PreparedQuery::Merged> merged;
  std::vector<ProbedList> lists;
  std::vector<size_t> list_ends;
  std::vector<Candidate> gathered;
  std::vector<Candidate> interacted;
  std::vector<Ranker::Scored> skimmed;
};

/// One snapshot: a list of segments searched as one collection. Const is safe from any thread; buffers
/// are borrowed from a pool per call.
class Searcher {
 public:
  /// All segments share `codec`, or none of them has codes (then it is null). `deleted`: one bitmap per
  /// segment, without words where nothing is deleted, or empty for none; read here only. With a
  /// `resident` of the same segments its device does what comes before rerank; what reranks, and what
  /// scores given documents, stays here.
  Searcher(std::vector<std::shared_ptr<const Segment>> segments, std::shared_ptr<const Codec> codec,
           size_t threads, std::span<const BitmapView> deleted = {},
           std::shared_ptr<const Resident> resident = {});
  ~Searcher();

  /// The best k documents. `allow`: one bitmap per segment, without words for all of it, or empty for
  /// all. Documents are scored by all threads, whose number changes no bit of an answer.
  Found search(MatrixView<const float> query, uint32_t k, const SearchParams& params,
               std::span<const BitmapView> allow, const std::function<bool()>& poll = {},
               Trace* trace = nullptr) const;

  /// Many queries spread over threads: exactly the answers of search(), one by one.
  std::vector<Found> search_batch(RaggedView<const float> queries, uint32_t k,
                                  const SearchParams& params, std::span<const BitmapView> allow,
                                  const std::function<bool()>& poll = {}) const;

  /// Scores of these documents of one segment from the best form it stores.
  void score(MatrixView<const float> query, uint32_t segment, std::span<const uint32_t> docs,
             std::span<float> scores) const;

  /// See DocumentScorer::align; from the best form stored.
  void align(MatrixView<const float> query, uint32_t segment, uint32_t doc,
             std::span<uint32_t> tokens, std::span<float> similarities) const;

  std::span<const std::shared_ptr<const Segment>> segments() const noexcept { return segments_; }
  uint64_t token_count() const noexcept { return n_tokens_; }
  uint64_t doc_count() const noexcept { return n_docs_; }
  size_t dim() const noexcept { return dim_; }
  size_t threads() const noexcept { return threads_; }
  /// Null where the CPU searches.
  const Resident* resident() const noexcept { return resident_.get(); }

 private:
  struct Scratch;
  class Lease;

  Found search_with(MatrixView<const float> query, uint32_t k, const SearchParams& params,
                    std::span<const BitmapView> allow, size_t threads, Scratch& scratch,
                    const std::function<bool()>& poll, Trace* trace) const;
  /// Many queries where a device searches: all of them at once, then what reranks, spread over threads.
  std::vector<Found> search_resident(RaggedView<const float> queries, uint32_t k,
                                     const SearchParams& params, std::span<const BitmapView> allow,
                                     const std::function<bool()>& poll) const;
  /// How many documents the last stage scores from a form better than codes.
  size_t rerank_count(const SearchParams& params, size_t n_candidates) const;
  void require_search(MatrixView<const float> query, uint32_t k, const SearchParams& params,
                      std::span<const BitmapView> allow) const;
  /// Prepares the query and lends a scorer of single documents to `use`.
  void with_scorer(MatrixView<const float> query,
                   const std::function<void(const DocumentScorer&, ScoreScratch&)>& use) const;
  /// Whether scan() can answer: a query of one token, no document with more.
  bool rows_alone(const PreparedQuery& query) const noexcept;
  /// Whether that costs no more than scoring so many documents one by one.
  bool scan_is_cheaper(uint64_t n_matching) const noexcept;
  double scan_cost() const noexcept;
  bool exhaustive_is_cheaper(const PreparedQuery& query, const SearchParams& params,
                             uint64_t n_matching) const;
  /// One bitmap per segment of the documents that this search may return.
  std::span<const BitmapView> matching(std::span<const BitmapView> allow, Scratch& scratch) const;
  void add_segment(const Segment& segment, BitmapView deleted);
  void require_query(MatrixView<const float> query) const;
  void require_doc(uint32_t segment, uint32_t doc) const;

  std::vector<std::shared_ptr<const Segment>> segments_;
  std::shared_ptr<const Codec> codec_;
  std::shared_ptr<const Resident> resident_;
  size_t threads_;
  size_t dim_ = 0;
  uint64_t n_docs_ = 0;      ///< ordinals, deleted and empty documents included
  uint64_t n_matching_ = 0;  ///< documents neither deleted nor empty
  uint64_t n_tokens_ = 0;    ///< of those
  size_t longest_doc_ = 0;   ///< its tokens
  bool any_deleted_ = false;
  std::vector<std::vector<uint64_t>> matching_words_;  ///< of the documents in n_matching_
  std::vector<BitmapView> matching_;
  std::vector<uint32_t>
      list_lengths_;  ///< per fine centroid, over all segments: what reading costs

  mutable std::mutex pool_mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> pool_;
};

}  // namespace weft
