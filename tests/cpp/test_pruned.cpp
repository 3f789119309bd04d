// SPDX-License-Identifier: Apache-2.0
//
// Pruned search through the plug-in's C interface, under the sanitizers, beside a definition of its own:
// each stage a loop over everything, and a sort.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "coded.h"

namespace {

using weft::Random;
using weft::test::Collection;
using weft::test::kDevices;
using weft::test::Loaded;
using weft::test::Queries;

struct Settings {
  uint32_t nprobe, budget, ncandidates, nskim, nrefine, floor_share;
  uint64_t keep;
};

struct Found {
  uint32_t doc;
  float score;
};

struct Expected {
  weft_search_counts counts{};
  std::vector<Found> found;
};

/// A document in the numbering through segments.
struct Place {
  const Collection::Segment* segment;
  uint32_t doc;
};

class Definition {
 public:
  Definition(const Collection& all, const std::vector<uint64_t>& allow) : all_(all) {
    uint32_t first = 0;
    for (const auto& s : all.segments) {
      for (uint32_t doc = 0; doc < s.ranks.size(); ++doc) {
        const uint32_t number = first + doc;
        places_[number] = {&s, doc};
        if (allow.empty() || (allow[number / 64] >> (number % 64) & 1) != 0) {
          allowed_.insert(number);
        }
      }
      first += static_cast<uint32_t>((s.ranks.size() + 63) / 64 * 64);
    }
  }

  Expected search(const weft_search_query& query, const Settings& how, bool reads_on) {
    fill_tables(query);
    Expected out;
    std::vector<std::vector<uint32_t>> lists;  // of every merged token, best first
    std::set<uint32_t> opened;
    for (uint32_t i = 0; i < query.n_merged; ++i) {
      const uint32_t lane = query.lanes[i];
      std::vector<std::pair<int, uint32_t>> cells;
      for (uint32_t cell = 0; cell < Collection::kCells; ++cell) {
        cells.emplace_back(
            -score_of(query, lane, &all_.coarse[size_t{cell} * all_.dim], query.coarse_shift),
            cell);
      }
      std::sort(cells.begin(), cells.end());
      cells.resize(std::min<size_t>(cells.size(), how.nprobe));
      std::vector<std::pair<int, uint32_t>> own;
      for (const auto& [score, cell] : cells) {
        opened.insert(cell);
        for (uint32_t f = all_.child_offsets[cell]; f < all_.child_offsets[cell + 1]; ++f) {
          if (length(f) > 0) {
            own.emplace_back(-fine_entry(lane, f), f);
          }
        }
      }
      std::sort(own.begin(), own.end());
      lists.emplace_back();
      for (const auto& [entry, f] : own) {
        lists.back().push_back(f);
      }
    }

    size_t n_rounds = 0, longest = 0;
    uint64_t survived = 0;
    const uint64_t wanted = reads_on ? std::min(how.budget, how.ncandidates) : 0;
    for (const auto& own : lists) {
      longest = std::max(longest, own.size());
    }
    for (; n_rounds < longest && (out.counts.postings < how.budget || survived < wanted);
         ++n_rounds) {
      for (const auto& own : lists) {
        if (n_rounds < own.size()) {
          out.counts.postings += length(own[n_rounds]);
          for (const uint32_t doc : postings(own[n_rounds])) {
            survived += allowed_.contains(doc) ? 1 : 0;
          }
        }
      }
    }

    std::map<uint32_t, uint32_t> sums;
    for (uint32_t i = 0; i < query.n_merged; ++i) {
      const size_t n = std::min(n_rounds, lists[i].size());
      std::map<uint32_t, uint32_t> gains;
      for (size_t j = 0; j < n; ++j) {
        const uint32_t lane = query.lanes[i];
        const auto floor =
            (static_cast<uint32_t>(fine_entry(lane, lists[i][n - 1])) * how.floor_share) >> 8;
        const auto entry = static_cast<uint32_t>(fine_entry(lane, lists[i][j]));
        const uint32_t gain = ((entry - floor) * query.weights[i]) >> query.gain_shift;
        for (const uint32_t doc : postings(lists[i][j])) {
          if (allowed_.contains(doc)) {
            gains[doc] = std::max(gains[doc], std::clamp(gain, 1u, 1'023u));
          }
        }
      }
      for (const auto& [doc, gain] : gains) {
        sums[doc] += gain;
      }
    }
    using Valued = std::tuple<int64_t, uint32_t>;  // what is sorted by, ascending; a document
    std::vector<Valued> kept;
    for (const auto& [doc, sum] : sums) {
      kept.emplace_back(-int64_t{sum}, doc);
    }
    const auto keep = [&](size_t n) {
      std::sort(kept.begin(), kept.end());
      kept.resize(std::min(kept.size(), n));
    };
    keep(how.ncandidates);
    out.counts.gathered = kept.size();

    if (kept.size() > how.nrefine) {
      for (auto& [value, doc] : kept) {
        uint32_t sum = 0;
        for (const int best : best_entries(query, opened, doc)) {
          sum += static_cast<uint32_t>(best);
        }
        value = -int64_t{10 * sum + 3 * (sums[doc] << query.gain_shift)};
      }
      keep(std::max(how.nskim, how.nrefine));
    }
    std::vector<uint32_t> docs;
    for (const auto& [value, doc] : kept) {
      docs.push_back(doc);
    }
    if (how.nskim > 0 && docs.size() > how.nrefine) {
      out.counts.skimmed = docs.size();
      docs = best_of(docs, how.nrefine, [&](uint32_t doc) {
        return all_.score(*places_.at(doc).segment, leaders(query, opened, doc), query.query);
      });
    }
    out.counts.refined = docs.size();
    const auto refined = [&](uint32_t doc) {
      return all_.score(*places_.at(doc).segment, places_.at(doc).doc, query.query);
    };
    for (const uint32_t doc : best_of(docs, how.keep, refined)) {
      out.found.push_back({doc, refined(doc)});
    }
    out.counts.found = out.found.size();
    return out;
  }

 private:
  std::vector<uint32_t> postings(uint32_t fine) const {
    std::vector<uint32_t> docs;
    uint32_t first = 0;
    for (const auto& s : all_.segments) {
      for (uint64_t at = s.list_offsets[fine]; at < s.list_offsets[fine + 1]; ++at) {
        docs.push_back(s.lists[at] < s.ranks.size() ? first + s.lists[at] : UINT32_MAX);
      }
      first += static_cast<uint32_t>((s.ranks.size() + 63) / 64 * 64);
    }
    return docs;
  }
  uint64_t length(uint32_t fine) const { return postings(fine).size(); }

  int score_of(const weft_search_query& query, uint32_t lane, const int8_t* centroid,
               uint32_t shift) const {
    int dot = 0;
    for (uint32_t d = 0; d < all_.dim; ++d) {
      dot += query.query.rows[size_t{lane} * all_.dim + d] * centroid[d];
    }
    return std::clamp(dot >> shift, -32'768, 32'767);
  }
  static int entry_of(int score, int factor) {
    return std::clamp((score * factor + 16'384) >> 15, 0, 255);
  }
  void fill_tables(const weft_search_query& query) {
    fine_entries_.clear();
    cell_entries_.clear();
    for (uint32_t lane = 0; lane < query.query.n_tokens; ++lane) {
      for (uint32_t f = 0; f < all_.n_fine(); ++f) {
        const int score =
            score_of(query, lane, &all_.fine[size_t{f} * all_.dim], query.query.base_shift);
        fine_entries_.push_back(entry_of(score, query.fine_factor));
      }
      for (uint32_t cell = 0; cell < Collection::kCells; ++cell) {
        const int score =
            score_of(query, lane, &all_.coarse[size_t{cell} * all_.dim], query.coarse_shift);
        cell_entries_.push_back(entry_of(score, query.coarse_factor));
      }
    }
  }
  int fine_entry(uint32_t lane, uint32_t fine) const {
    return fine_entries_[size_t{lane} * all_.n_fine() + fine];
  }

  /// Of a token of a document: its centroid's, or where the cell was not opened the cell's.
  int entry(uint32_t lane, const std::set<uint32_t>& opened, const Collection::Segment& s,
            uint64_t token) const {
    const uint32_t fine = all_.fine_of(s, token);
    if (fine >= all_.n_fine()) {
      return 0;
    }
    uint32_t cell = 0;
    while (all_.child_offsets[cell + 1] <= fine) {
      ++cell;
    }
    if (opened.contains(cell)) {
      return fine_entry(lane, fine);
    }
    return cell_entries_[size_t{lane} * Collection::kCells + cell];
  }

  std::vector<int> best_entries(const weft_search_query& query, const std::set<uint32_t>& opened,
                                uint32_t doc) const {
    const auto& [s, number] = places_.at(doc);
    std::vector<int> best(query.query.n_tokens, 0);
    for (uint32_t lane = 0; lane < best.size(); ++lane) {
      for (uint64_t t = s->offsets[number]; t < s->offsets[number + 1]; ++t) {
        best[lane] = std::max(best[lane], entry(lane, opened, *s, t));
      }
    }
    return best;
  }

  std::vector<uint64_t> leaders(const weft_search_query& query, const std::set<uint32_t>& opened,
                                uint32_t doc) const {
    const auto& [s, number] = places_.at(doc);
    const std::vector<int> best = best_entries(query, opened, doc);
    std::vector<uint64_t> found;
    for (uint64_t t = s->offsets[number]; t < s->offsets[number + 1]; ++t) {
      for (uint32_t lane = 0; lane < best.size(); ++lane) {
        if (best[lane] > 0 && entry(lane, opened, *s, t) == best[lane]) {
          found.push_back(t);
          break;
        }
      }
    }
    return found.empty() ? std::vector<uint64_t>{s->offsets[number]} : found;
  }

  template <class Score>
  std::vector<uint32_t> best_of(const std::vector<uint32_t>& docs, size_t n,
                                const Score& score) const {
    std::vector<std::tuple<float, uint32_t, uint32_t>> scored;
    for (const uint32_t doc : docs) {
      const float value = score(doc);
      if (value > -std::numeric_limits<float>::infinity()) {
        scored.emplace_back(-value, places_.at(doc).segment->ranks[places_.at(doc).doc], doc);
      }
    }
    std::sort(scored.begin(), scored.end());
    scored.resize(std::min(scored.size(), n));
    std::vector<uint32_t> best;
    for (const auto& one : scored) {
      best.push_back(std::get<2>(one));
    }
    return best;
  }

  const Collection& all_;
  std::map<uint32_t, Place> places_;
  std::set<uint32_t> allowed_;
  std::vector<int> fine_entries_, cell_entries_;  // [query tokens][centroids]
};

/// Queries whose tokens with an odd number stand for others, too.
struct SearchQueries {
  Queries queries;
  std::vector<std::vector<uint32_t>> tokens;
  std::vector<weft_search_query> plain;

  explicit SearchQueries(Queries given)
      : queries(std::move(given)), tokens(2 * queries.plain.size()) {
    for (size_t i = 0; i < queries.plain.size(); ++i) {
      for (uint32_t token = 0; token < queries.plain[i].n_tokens; token += 1 + token % 2) {
        tokens[2 * i].push_back(token);
        tokens[2 * i + 1].push_back(1 + token % 2);
      }
      plain.push_back({.struct_size = sizeof(weft_search_query),
                       .n_merged = static_cast<uint32_t>(tokens[2 * i].size()),
                       .query = queries.plain[i],
                       .lanes = tokens[2 * i].data(),
                       .weights = tokens[2 * i + 1].data(),
                       .coarse_shift = 4,
                       .coarse_factor = 2'000,
                       .fine_factor = 1'000,
                       .gain_shift = static_cast<uint32_t>(i % 2)});
    }
  }
};

void compare(const Collection& all, const SearchQueries& queries,
             const std::vector<uint64_t>& allow, bool reads_on,
             const std::vector<Settings>& settings) {
  Definition definition(all, allow);
  for (const Settings& how : settings) {
    const size_t n = queries.plain.size();
    std::vector<Expected> expected;
    for (const weft_search_query& query : queries.plain) {
      expected.push_back(definition.search(query, how, reads_on));
    }
    for (int device = 0; device < kDevices; ++device) {
      const Loaded loaded(device, all);
      std::vector<uint32_t> docs(n * how.keep);
      std::vector<float> scores(n * how.keep);
      std::vector<weft_search_counts> counts(n);
      weft_search_args args{};
      args.struct_size = sizeof args;
      args.n_queries = static_cast<uint32_t>(n);
      args.queries = queries.plain.data();
      args.nprobe = how.nprobe;
      args.budget = how.budget;
      args.ncandidates = how.ncandidates;
      args.nskim = how.nskim;
      args.nrefine = how.nrefine;
      args.floor_share = how.floor_share;
      args.keep = how.keep;
      args.allow = allow.empty() ? nullptr : allow.data();
      args.reads_on = reads_on ? 1 : 0;
      args.docs = docs.data();
      args.scores = scores.data();
      args.counts = counts.data();
      weft_error error{};
      for (int turn = 0; turn < (n < 9 ? 2 : 1); ++turn) {  // in the memory of the search before
        CHECK(loaded.backend.search(loaded.resident, &args, &error) == 0);
        for (size_t q = 0; q < n; ++q) {
          const weft_search_counts& wanted = expected[q].counts;
          CHECK(counts[q].postings == wanted.postings);
          CHECK(counts[q].gathered == wanted.gathered);
          CHECK(counts[q].skimmed == wanted.skimmed);
          CHECK(counts[q].refined == wanted.refined);
          CHECK(counts[q].found == wanted.found);
          for (size_t i = 0; i < wanted.found; ++i) {
            CHECK(docs[q * how.keep + i] == expected[q].found[i].doc);
            CHECK(scores[q * how.keep + i] == expected[q].found[i].score);
          }
        }
      }
    }
  }
}

void test_search_equals_its_definition() {
  Random random(11, 0);
  for (const uint32_t nbits : {1u, 2u, 4u, 8u}) {
    const uint32_t dim = nbits == 1 || nbits == 4 ? 128 : 32;
    const Collection all(random, nbits, dim, {40, 1, 0, 30}, 40);
    const SearchQueries queries(Queries(random, dim, {1, 2, 65}, 127));
    compare(all, queries, {}, false, {{1, 1, 20, 0, 9, 192, 5}, {3, 200, 50, 20, 8, 192, 8}});
    std::vector<uint64_t> allow(1 + 1 + 0 + 1);
    for (uint64_t& word : allow) {
      word = random.next();
    }
    compare(all, queries, allow, nbits < 4, {{5, 30, 30, 15, 6, 256, 6}});
  }
}

void test_equal_scores() {
  Random random(12, 0);
  const Collection all(random, 4, 32, {64, 200}, 6);
  const SearchQueries queries(Queries(random, 32, {1, 5}, 0));  // every score the same
  compare(all, queries, {}, false,
          {{2, 100, 30, 20, 7, 0, 7}, {9, 100'000, 100'000, 50, 40, 256, 40}});
}

void test_more_than_a_thread_block_takes() {
  Random random(13, 0);
  const Collection all(random, 1, 32, {5'000, 3'000}, 3);
  const SearchQueries queries(Queries(random, 32, {2}, 20));
  compare(all, queries, {}, false,
          {{5, 20'000, 6'000, 4'200, 3'000, 128, 2'500}, {5, 4'000, 700, 0, 600, 192, 600}});
}

void test_more_queries_than_are_taken_at_once() {
  Random random(14, 0);
  const Collection all(random, 4, 32, {20}, 9);
  compare(all, SearchQueries(Queries(random, 32, std::vector<uint32_t>(257, 1), 127)), {}, false,
          {{2, 20, 9, 6, 3, 192, 3}});
}

}  // namespace

int main() {
  test_search_equals_its_definition();
  test_equal_scores();
  test_more_than_a_thread_block_takes();
  test_more_queries_than_are_taken_at_once();
  return CHECK_RESULT;
}
