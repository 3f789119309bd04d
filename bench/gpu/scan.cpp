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
  const auto nbits = static_cast<uint32_t>(argc > 3 ? std::atoi(argv[3]) : 4);
  const auto query_tokens = static_cast<uint32_t>(argc > 4 ? std::atoi(argv[4]) : 32);

  weft::Random random(7, 0);
  const RandomTokens tokens(random, std::strtoull(argv[2], nullptr, 10), nbits);
  const uint64_t n_tokens = tokens.n_tokens;
  const auto n_children =
      static_cast<uint32_t>(std::clamp<uint64_t>(n_tokens / kTokensPerFine / kCells, 1, 256));
  const auto child_offsets = even_children(kCells, n_children);
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
  const weft_segment segment = tokens.segment(parents, children);
  weft_error error{};
  weft_resident* resident = nullptr;
  check(backend.load(0, &codec, &segment, 1, &resident, &error), error);

  for (const uint32_t batch : {1u, 8u, 64u}) {
    std::vector<double> times;
    const int repeats = n_tokens * batch > 1'000'000'000 ? 9 : 51;
    for (int i = -3; i < repeats; ++i) {  // three to warm up; new queries each time
      const auto rows = random_rows(random, size_t{batch} * query_tokens);
      std::vector<weft_query> queries;
      for (uint32_t q = 0; q < batch; ++q) {
        queries.push_back(query_of(rows.data() + size_t{q} * query_tokens * kDim, query_tokens));
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
