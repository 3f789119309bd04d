// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's host code and kernel bodies through its C interface, under the sanitizers, beside a
// definition of its own: loops over documents, tokens and dims, and a sort.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "check.h"
#include "cuda/abi.h"

namespace {

using weft::Random;

/// Segments with everything in them that a damaged file may hold, too.
struct Collection {
  struct Segment {
    std::vector<uint64_t> offsets{0};
    std::vector<uint16_t> parents, steps;
    std::vector<uint8_t> children, multipliers, codes;
    std::vector<uint32_t> ranks;
  };
  uint32_t nbits, dim;
  std::vector<int8_t> fine;
  std::vector<uint32_t> child_offsets{0};
  std::vector<Segment> segments;
  std::vector<weft_segment> plain;

  Collection(Random& random, uint32_t bits, uint32_t dims, const std::vector<uint32_t>& n_docs,
             uint64_t longest)
      : nbits(bits), dim(dims) {
    for (uint32_t cell = 0; cell < 5; ++cell) {
      child_offsets.push_back(child_offsets.back() + 1 + static_cast<uint32_t>(random.below(4)));
    }
    for (size_t i = 0; i < size_t{n_fine()} * dim; ++i) {
      fine.push_back(static_cast<int8_t>(random.below(255)));
      fine.back() = fine.back() == -128 ? int8_t{0} : fine.back();
    }
    uint32_t n_all = 0;
    for (const uint32_t n : n_docs) {
      n_all += n;
    }
    std::vector<uint32_t> ranks;
    for (uint32_t rank = 0; rank < n_all; ++rank) {
      ranks.insert(ranks.begin() + static_cast<ptrdiff_t>(random.below(rank + 1)), rank);
    }
    for (const uint32_t n : n_docs) {
      Segment& s = segments.emplace_back();
      for (uint32_t doc = 0; doc < n; ++doc) {
        const uint64_t length = random.below(4) == 0 ? random.below(3) : random.below(longest + 1);
        s.offsets.push_back(s.offsets.back() + length);
        s.ranks.push_back(ranks.back());
        ranks.pop_back();
      }
      for (uint64_t t = 0; t < s.offsets.back(); ++t) {
        const bool damaged = random.below(50) == 0;
        s.parents.push_back(static_cast<uint16_t>(random.below(damaged ? 65'536 : 5)));
        const uint64_t cell = std::min<uint64_t>(s.parents.back(), 4);
        const uint64_t n_children = child_offsets[cell + 1] - child_offsets[cell];
        s.children.push_back(static_cast<uint8_t>(random.below(damaged ? 256 : n_children)));
        s.steps.push_back(
            static_cast<uint16_t>(damaged ? random.next() : 0x2000 + random.below(99)));
        s.multipliers.push_back(static_cast<uint8_t>(random.next()));
        for (uint32_t i = 0; i < dim * nbits / 8; ++i) {
          s.codes.push_back(static_cast<uint8_t>(random.next()));
        }
      }
    }
    for (const Segment& s : segments) {
      plain.push_back({.struct_size = sizeof(weft_segment),
                       .n_docs = static_cast<uint32_t>(s.ranks.size()),
                       .n_tokens = s.parents.size(),
                       .offsets = s.offsets.data(),
                       .parents = s.parents.data(),
                       .steps = s.steps.data(),
                       .children = s.children.data(),
                       .multipliers = s.multipliers.data(),
                       .codes = s.codes.data(),
                       .ranks = s.ranks.data()});
    }
  }

  uint32_t n_fine() const { return child_offsets.back(); }
  weft_codec codec() const {
    return {.struct_size = sizeof(weft_codec),
            .nbits = nbits,
            .dim = dim,
            .n_coarse = 5,
            .n_fine = n_fine(),
            .fine = fine.data(),
            .child_offsets = child_offsets.data(),
            .multiplier_least = 0.75f,
            .multiplier_step = 1.0f / 512};
  }

  /// Level of dim d of token t: see kernels::CodeBlock.
  int32_t level(const Segment& s, uint64_t t, uint32_t d) const {
    const uint32_t per_byte = 8 / nbits, quad = d / 4;
    const uint8_t byte = s.codes[t * (dim * nbits / 8) + 4 * (quad / per_byte) + d % 4];
    return byte >> (nbits * (quad % per_byte)) & ((1 << nbits) - 1);
  }

  float score(const Segment& s, uint32_t doc, const weft_query& query) const {
    float sum = 0.0f;
    for (uint32_t i = 0; i < query.n_tokens; ++i) {
      const int8_t* row = query.rows + size_t{i} * dim;
      float best = -std::numeric_limits<float>::infinity();
      for (uint64_t t = s.offsets[doc]; t < s.offsets[doc + 1]; ++t) {
        const uint32_t of = child_offsets[std::min<uint32_t>(s.parents[t], 5)] + s.children[t];
        int32_t residual = 0, base = 0;
        for (uint32_t d = 0; d < dim; ++d) {
          residual += row[d] * (2 * level(s, t, d) - ((1 << nbits) - 1));
          base += of < n_fine() ? row[d] * fine[size_t{of} * dim + d] : 0;
        }
        base = of < n_fine() ? base >> query.base_shift : INT16_MIN;
        const float m = 0.75f + static_cast<float>(s.multipliers[t]) / 512;
        const float from_base = m * query.base_unit * static_cast<float>(base);
        const float scale = weft::half_to_float(s.steps[t]) * (m * query.code_unit);
        const float similarity = std::fma(scale, static_cast<float>(residual), from_base);
        best = similarity > best ? similarity : best;
      }
      sum += best;
    }
    return sum;
  }
};

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

struct Queries {
  std::vector<std::vector<int8_t>> rows;
  std::vector<weft_query> plain;

  Queries(Random& random, uint32_t dim, const std::vector<uint32_t>& lengths, int widest) {
    for (const uint32_t n : lengths) {
      auto& of = rows.emplace_back(size_t{n} * dim);
      for (int8_t& value : of) {
        value = static_cast<int8_t>(
            static_cast<int>(random.below(static_cast<uint64_t>(2 * widest + 1))) - widest);
      }
      plain.push_back({.struct_size = sizeof(weft_query),
                       .n_tokens = n,
                       .rows = of.data(),
                       .base_shift = 3,
                       .base_unit = 0.00125f,
                       .code_unit = 0.0037f});
    }
  }
};

struct Loaded {
  const weft_backend& backend = *weft_backend_v1();
  weft_resident* resident = nullptr;
  weft_error error{};

  Loaded(int device, const Collection& all) {
    const weft_codec codec = all.codec();
    CHECK(backend.load(device, &codec, all.plain.data(), static_cast<uint32_t>(all.plain.size()),
                       &resident, &error) == 0);
  }
  ~Loaded() { backend.unload(resident); }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;
};

constexpr int kDevices = 3;  // orders of threads

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
