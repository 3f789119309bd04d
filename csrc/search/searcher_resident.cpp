// SPDX-License-Identifier: Apache-2.0
//
// Searches on a device, from which the documents to rerank come.
#include <algorithm>

#include "base/parallel.h"
#include "search/searcher.inl"

namespace weft {

namespace {

std::vector<const PreparedQuery*> chosen(
    std::span<const std::unique_ptr<const PreparedQuery>> queries, std::span<const size_t> places) {
  std::vector<const PreparedQuery*> some;
  for (const size_t place : places) {
    some.push_back(queries[place].get());
  }
  return some;
}

}  // namespace

std::vector<Found> Searcher::search_resident(RaggedView<const float> queries, uint32_t k,
                                             const SearchParams& params,
                                             std::span<const BitmapView> allow,
                                             const std::function<bool()>& poll) const {
  std::vector<Found> found(queries.size());
  if (found.empty()) {
    return found;
  }
  StageClock clock(found.front());
  std::vector<std::unique_ptr<const PreparedQuery>> prepared(queries.size());
  parallel_for(queries.size(), threads_, [&](size_t begin, size_t end, size_t) {
    for (size_t i = begin; i < end; ++i) {
      require_search(queries[i], k, params, allow);
      prepared[i] = std::make_unique<const PreparedQuery>(queries[i], codec_.get());
    }
  });
  clock.finished(Stage::prepare);
  const Lease lease(*this);
  const auto matches = matching(allow, *lease);
  const uint64_t n_matching = allow.empty() ? n_matching_ : count(matches);
  const size_t keep = std::max<size_t>(rerank_count(params, n_matching), k);
  std::vector<size_t> pruned, scanned;
  for (size_t i = 0; i < found.size(); ++i) {
    const bool scans = params.path == SearchPath::exhaustive ||
                       (params.path == SearchPath::cheaper &&
                        exhaustive_is_cheaper(*prepared[i], params, n_matching));
    (scans ? scanned : pruned).push_back(i);
  }
  // Queries are handed over in groups: each of a group gets its share of the time.
  const auto share_time = [&](std::span<const size_t> group, double milliseconds) {
    for (const size_t i : group) {
      found[i].milliseconds[static_cast<size_t>(Stage::device)] +=
          milliseconds / static_cast<double>(group.size());
    }
  };
  std::vector<std::vector<ScannedDoc>> best(found.size());
  if (!pruned.empty()) {
    const bool all = allow.empty() && !any_deleted_;
    const auto begin = Clock::now();
    auto answers = resident_->search(
        chosen(prepared, pruned), params, keep,
        all ? std::span<const BitmapView>{} : std::span<const BitmapView>(matches), !allow.empty(),
        poll);
    share_time(pruned, milliseconds_since(begin));
    for (size_t j = 0; j < pruned.size(); ++j) {
      const size_t i = pruned[j];
      found[i].n_postings = answers[j].n_postings;
      // Too few documents met to fill k, though there are more: score them all instead.
      if (answers[j].n_candidates < std::min<uint64_t>(k, n_matching)) {
        scanned.push_back(i);
        continue;
      }
      found[i].n_candidates = answers[j].n_candidates;
      found[i].n_skimmed = answers[j].n_skimmed;
      const uint64_t n =
          answers[j].n_refined;  // unless all of them are reranked: see search_with()
      found[i].n_refined = rerank_count(params, n) < n ? n : 0;
      best[i] = std::move(answers[j].docs);
    }
  }
  if (!scanned.empty()) {
    const auto begin = Clock::now();
    auto answers = resident_->scan(chosen(prepared, scanned), keep, matches, poll);
    share_time(scanned, milliseconds_since(begin));
    for (size_t j = 0; j < scanned.size(); ++j) {
      const size_t i = scanned[j];
      found[i].exhaustive = true;
      found[i].n_candidates = found[i].n_refined = n_matching;
      best[i] = std::move(answers[j]);
    }
  }

  const auto finish = [&](size_t i, size_t threads) {
    Found& one = found[i];
    one.n_matching = n_matching;
    std::vector<Candidate> candidates;
    for (const auto& [ref, score] : best[i]) {
      candidates.push_back({ref, 0});
      one.docs.push_back(ref);
      one.scores.push_back(score);
    }
    if (rerank_count(params, n_matching) == 0) {
      return;
    }
    StageClock own_clock(one);
    const Lease own(*this);
    Scratch& scratch = *own;
    scratch.base.start(*prepared[i], *codec_);
    if (scratch.rank.score.size() < threads) {
      scratch.rank.score.resize(threads);
    }
    std::ranges::sort(candidates, {}, &Candidate::ref);
    one.n_reranked = candidates.size();
    const std::function<bool()> no_poll;  // the ranker refers to it
    Ranker ranker(segments_, *prepared[i], scratch.probe, scratch.base, scratch.rank, threads,
                  no_poll);
    ranker.rerank(candidates, k, false);
    one.docs.clear();
    one.scores.clear();
    for (const Ranker::Scored& top : ranker.best()) {
      one.docs.push_back(top.ref);
      one.scores.push_back(top.score);
    }
    own_clock.finished(Stage::rerank);
  };
  const double preparing = found.front().milliseconds[static_cast<size_t>(Stage::prepare)];
  for (Found& one : found) {
    one.milliseconds[static_cast<size_t>(Stage::prepare)] =
        preparing / static_cast<double>(found.size());
  }
  if (found.size() == 1) {
    finish(0, threads_);
    return found;
  }
  parallel_for(
      found.size(), threads_,
      [&](size_t begin, size_t end, size_t) {
        for (size_t i = begin; i < end; ++i) {
          finish(i, 1);
        }
      },
      1, poll);
  return found;
}

}  // namespace weft
