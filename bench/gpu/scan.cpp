// SPDX-License-Identifier: Apache-2.0
//
// Times the exhaustive scan of a back end through its C interface, over random codes: as many tokens
// as asked for, without an index to build first.
//
//   scan LIBRARY TOKENS [NBITS [QUERY_TOKENS]]
//
// prints one line of JSON per batch size. Times are the caller's: queries in host memory to documents
// and scores in host memory. Bytes are what the scan reads at least once per pass over the codes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "library.h"

namespace {

constexpr uint32_t kCells = 1'024;
constexpr uint64_t kK = 10;

}  // namespace

int main(int argc, char** argv) {
  const weft_backend& backend =
      open_library(argc, argv, "scan LIBRARY TOKENS [NBITS [QUERY_TOKENS]]");
  const uint64_t n_docs = std::max<uint64_t>(std::strtoull(argv[2], nullptr, 10) / kDocTokens, 1);
  const uint64_t n_tokens = n_docs * kDocTokens;
  const auto nbits = static_cast<uint32_t>(argc > 3 ? std::atoi(argv[3]) : 4);
  const auto query_tokens = static_cast<uint32_t>(argc > 4 ? std::atoi(argv[4]) : 32);

  weft::Random random(7, 0);
  const auto n_children =
      static_cast<uint32_t>(std::clamp<uint64_t>(n_tokens / kTokensPerFine / kCells, 1, 256));
  std::vector<uint32_t> child_offsets(kCells + 1);
  for (uint32_t cell = 0; cell <= kCells; ++cell) {
    child_offsets[cell] = cell * n_children;
  }
  const auto fine = random_bytes<int8_t>(random, size_t{kCells} * n_children * kDim);
  const weft_codec codec{.struct_size = sizeof codec,
                         .nbits = nbits,
                         .dim = kDim,
                         .n_coarse = kCells,
                         .n_fine = kCells * n_children,
                         .fine = fine.data(),
                         .child_offsets = child_offsets.data(),
                         .multiplier_least = 0.75f,
                         .multiplier_step = 1.0f / 512,
                         .coarse = nullptr};
  auto parents = random_bytes<uint16_t>(random, n_tokens);
  auto children = random_bytes<uint8_t>(random, n_tokens);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    parents[t] %= kCells;
    children[t] = static_cast<uint8_t>(children[t] % n_children);
  }
  const std::vector<uint16_t> steps(n_tokens, 0x1800);
  const auto multipliers = random_bytes<uint8_t>(random, n_tokens);
  const auto codes = random_bytes<uint8_t>(random, n_tokens * kDim * nbits / 8);
  std::vector<uint64_t> offsets(n_docs + 1);
  std::vector<uint32_t> ranks(n_docs);
  std::iota(ranks.begin(), ranks.end(), 0u);
  for (uint64_t doc = 0; doc <= n_docs; ++doc) {
    offsets[doc] = doc * kDocTokens;
  }
  const weft_segment segment{.struct_size = sizeof segment,
                             .n_docs = static_cast<uint32_t>(n_docs),
                             .n_tokens = n_tokens,
                             .offsets = offsets.data(),
                             .parents = parents.data(),
                             .steps = steps.data(),
                             .children = children.data(),
                             .multipliers = multipliers.data(),
                             .codes = codes.data(),
                             .ranks = ranks.data(),
                             .list_offsets = nullptr,
                             .postings = nullptr,
                             .posting_width = 0};
  weft_error error{};
  weft_resident* resident = nullptr;
  check(backend.load(0, &codec, &segment, 1, &resident, &error), error);

  for (const uint32_t batch : {1u, 8u, 64u}) {
    std::vector<double> times;
    const int repeats = n_tokens * batch > 1'000'000'000 ? 9 : 51;
    for (int i = -3; i < repeats; ++i) {  // three to warm up; new queries each time
      auto rows = random_bytes<int8_t>(random, size_t{batch} * query_tokens * kDim);
      std::ranges::replace(rows, int8_t{-128}, int8_t{127});
      std::vector<weft_query> queries;
      for (uint32_t q = 0; q < batch; ++q) {
        queries.push_back({.struct_size = sizeof(weft_query),
                           .n_tokens = query_tokens,
                           .rows = rows.data() + size_t{q} * query_tokens * kDim,
                           .base_shift = 6,
                           .base_unit = 1e-3f,
                           .code_unit = 5e-4f});
      }
      std::vector<uint32_t> docs(batch * kK);
      std::vector<float> scores(batch * kK);
      std::vector<uint64_t> counts(batch);
      weft_scan_args args{};
      args.struct_size = sizeof args;
      args.n_queries = batch;
      args.queries = queries.data();
      args.k = kK;
      args.docs = docs.data();
      args.scores = scores.data();
      args.counts = counts.data();
      const auto begin = std::chrono::steady_clock::now();
      check(backend.scan(resident, &args, &error), error);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      if (i >= 0) {
        times.push_back(took.count());
      }
    }
    std::ranges::sort(times);
    const double median = times[times.size() / 2];
    const double bytes = static_cast<double>(n_tokens) * (kDim * nbits / 8 + 7);
    const double operations = 2.0 * 2 * kDim * query_tokens * batch * static_cast<double>(n_tokens);
    std::printf(
        "{\"tokens\": %llu, \"nbits\": %u, \"query_tokens\": %u, \"batch\": %u, "
        "\"median_ms\": %.4f, \"p95_ms\": %.4f, \"queries_per_s\": %.1f, "
        "\"code_bytes\": %.4g, \"centroid_bytes\": %.4g, \"operations\": %.4g}\n",
        static_cast<unsigned long long>(n_tokens), nbits, query_tokens, batch, 1e3 * median,
        1e3 * times[times.size() * 95 / 100], batch / median, bytes,
        static_cast<double>(n_tokens) * kDim, operations);
    std::fflush(stdout);
  }
  backend.unload(resident);
  return 0;
}
