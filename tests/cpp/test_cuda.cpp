// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's host code and kernel bodies through its C interface, under the sanitizers, beside a
// definition of its own: loops over documents, tokens and dims, and a sort.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "coded.h"

namespace {

using weft::Random;
using weft::test::Collection;
using weft::test::kDevices;
using weft::test::Loaded;
using weft::test::Queries;

struct Best {
  float score;
  uint32_t rank, doc;
};

/// The k best of one query, by a sort of all.
std::vector<Best> best_of(const Collection& all, const weft_query& query,
                          const std::vector<uint64_t>& allow, size_t k) {
  std::vector<Best> found;
  uint32_t first = 0;
  for (const auto& s : all.segments) {
    for (uint32_t i = 0; i < s.ranks.size(); ++i) {
      const uint32_t doc = first + i;
      const bool is_allowed = allow.empty() || (allow[doc / 64] >> (doc % 64) & 1) != 0;
      if (is_allowed && s.offsets[i] < s.offsets[i + 1]) {
        const float score = all.score(s, i, query);
        if (score > -std::numeric_limits<float>::infinity()) {
          found.push_back({score, s.ranks[i], doc});
        }
      }
    }
    first += static_cast<uint32_t>((s.ranks.size() + 63) / 64 * 64);
  }
  std::sort(found.begin(), found.end(), [](const Best& a, const Best& b) {
    return a.score != b.score ? a.score > b.score : a.rank < b.rank;
  });
  found.resize(std::min(found.size(), k));
  return found;
}

/// The same from every device as by the definition.
void compare(const Collection& all, const Queries& queries, const std::vector<uint64_t>& allow,
             const std::vector<size_t>& ks) {
  const size_t n = queries.plain.size(), most = *std::max_element(ks.begin(), ks.end());
  std::vector<std::vector<Best>> expected;
  for (const weft_query& query : queries.plain) {
    expected.push_back(best_of(all, query, allow, most));
  }
  for (int device = 0; device < kDevices; ++device) {
    const Loaded loaded(device, all);
    for (const size_t k : ks) {
      std::vector<uint32_t> docs(n * k);
      std::vector<float> scores(n * k);
      std::vector<uint64_t> counts(n);
      weft_scan_args args{};
      args.struct_size = sizeof args;
      args.n_queries = static_cast<uint32_t>(n);
      args.queries = queries.plain.data();
      args.k = k;
      args.allow = allow.empty() ? nullptr : allow.data();
      args.docs = docs.data();
      args.scores = scores.data();
      args.counts = counts.data();
      weft_error error{};
      CHECK(loaded.backend.scan(loaded.resident, &args, &error) == 0);
      for (size_t q = 0; q < n; ++q) {
        CHECK(counts[q] == std::min(expected[q].size(), k));
        for (size_t i = 0; i < std::min(expected[q].size(), k); ++i) {
          CHECK(docs[q * k + i] == expected[q][i].doc);
          CHECK(scores[q * k + i] == expected[q][i].score);
        }
      }
    }
  }
}

void test_scan_equals_its_definition() {
  Random random(1, 0);
  for (const uint32_t nbits : {1u, 2u, 4u, 8u}) {
    for (const uint32_t dim : {32u, 96u, 128u}) {
      const Collection all(random, nbits, dim, {20, 1, 0, 70}, 20);
      std::vector<uint64_t> allow(1 + 1 + 0 + 2);
      for (uint64_t& word : allow) {
        word = random.next();
      }
      compare(all, Queries(random, dim, {1, 16, 70}, 127), {}, {9});
      compare(all, Queries(random, dim, {1, 2}, 0), allow, {200});  // every score the same
    }
  }
}

void test_extreme_values_do_not_overflow() {
  Random random(2, 0);
  Collection all(random, 8, 4'128, {3}, 5);
  for (auto& s : all.segments) {
    std::fill(s.codes.begin(), s.codes.end(), uint8_t{255});
  }
  std::fill(all.fine.begin(), all.fine.end(), int8_t{-127});
  Queries queries(random, 4'128, {2}, 127);
  std::fill(queries.rows[0].begin(), queries.rows[0].end(), int8_t{127});
  queries.plain[0].base_shift = 12;
  compare(all, queries, {}, {3});
}

void test_many_rounds_of_selection() {
  Random random(3, 0);
  const Collection all(random, 1, 32, {8'700, 64, 300}, 1);
  compare(all, Queries(random, 32, {1}, 1), {}, {1, 2'047, 2'048, 2'049, 20'000});
}

void test_more_queries_than_are_taken_at_once() {
  Random random(4, 0);
  const Collection all(random, 4, 32, {20}, 9);
  compare(all, Queries(random, 32, std::vector<uint32_t>(130, 2), 127), {}, {3});
}

void test_errors() {
  Random random(5, 0);
  const Collection all(random, 4, 32, {20}, 9);
  const weft_backend& backend = *weft_backend_v1();
  weft_error error{};
  weft_codec codec = all.codec();
  weft_resident* resident = nullptr;
  CHECK(backend.load(3, &codec, all.plain.data(), 1, &resident, &error) == 7);  // 1 + device
  codec.nbits = 3;
  CHECK(backend.load(0, &codec, all.plain.data(), 1, &resident, &error) == 1);
  CHECK(std::strstr(error.text, "3 bits") != nullptr);

  const Loaded loaded(0, all);
  const Queries queries(random, 32, {2}, 127);
  int asked = 0;
  uint64_t count = 0;
  weft_scan_args args{};
  args.struct_size = sizeof args;
  args.n_queries = 1;
  args.queries = queries.plain.data();
  args.k = 1;
  args.poll = [](void* data) -> int32_t { return ++*static_cast<int*>(data); };
  args.poll_data = &asked;
  args.counts = &count;
  CHECK(backend.scan(loaded.resident, &args, &error) == 8);  // 1 + ErrorCode::cancelled
  CHECK(asked == 1);
}

}  // namespace

int main() {
  test_scan_equals_its_definition();
  test_extreme_values_do_not_overflow();
  test_many_rounds_of_selection();
  test_more_queries_than_are_taken_at_once();
  test_errors();
  return CHECK_RESULT;
}
