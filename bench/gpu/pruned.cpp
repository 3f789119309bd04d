// SPDX-License-Identifier: Apache-2.0
//
// Times pruned search of a back end through its C interface, over random codes: as many tokens as asked
// for, without an index to build first. Random documents share nothing, so reads are scattered as
// widely as they can be; what is found means nothing.
//
//   pruned LIBRARY TOKENS [NBITS [QUERY_TOKENS]]
//
// prints one line of JSON per batch size. Times are the caller's: queries in host memory to documents
// and scores in host memory.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "library.h"

namespace {

constexpr uint32_t kWidth = 3;  // bytes of a posting
constexpr uint64_t kK = 10;

}  // namespace

int main(int argc, char** argv) {
  const weft_backend& backend =
      open_library(argc, argv, "pruned LIBRARY TOKENS [NBITS [QUERY_TOKENS]]");
  const auto nbits = static_cast<uint32_t>(argc > 3 ? std::atoi(argv[3]) : 4);
  const auto query_tokens = static_cast<uint32_t>(argc > 4 ? std::atoi(argv[4]) : 32);

  weft::Random random(7, 0);
  const RandomTokens tokens(random, std::strtoull(argv[2], nullptr, 10), nbits);
  const uint64_t n_tokens = tokens.n_tokens;
  const auto root = static_cast<uint32_t>(std::sqrt(static_cast<double>(n_tokens)));
  const uint32_t n_cells = std::clamp<uint32_t>(std::bit_floor(root), 16, 65'536);
  const auto n_children =
      static_cast<uint32_t>(std::clamp<uint64_t>(n_tokens / kTokensPerFine / n_cells, 1, 256));
  const uint32_t n_fine = n_cells * n_children;
  const auto child_offsets = even_children(n_cells, n_children);
  const auto fine = random_rows(random, n_fine), coarse = random_rows(random, n_cells);
  const weft_codec codec{.struct_size = sizeof codec,
                         .nbits = nbits,
                         .dim = kDim,
                         .n_coarse = n_cells,
                         .n_fine = n_fine,
                         .fine = fine.data(),
                         .child_offsets = child_offsets.data(),
                         .multiplier_least = 0.75f,
                         .multiplier_step = 1.0f / 512,
                         .coarse = coarse.data()};
  std::vector<uint16_t> parents(n_tokens);
  std::vector<uint8_t> children(n_tokens);
  std::vector<uint64_t> list_offsets(n_fine + size_t{1});
  std::vector<uint32_t> fines(n_tokens);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    fines[t] = static_cast<uint32_t>(random.below(n_fine));
    parents[t] = static_cast<uint16_t>(fines[t] / n_children);
    children[t] = static_cast<uint8_t>(fines[t] % n_children);
    ++list_offsets[fines[t] + size_t{1}];
  }
  std::partial_sum(list_offsets.begin(), list_offsets.end(), list_offsets.begin());
  std::vector<uint64_t> next(list_offsets.begin(), list_offsets.end() - 1);
  std::vector<uint8_t> postings(n_tokens * kWidth);
  for (uint64_t t = 0; t < n_tokens; ++t) {
    uint8_t* const out = postings.data() + kWidth * next[fines[t]]++;
    for (uint32_t byte = 0; byte < kWidth; ++byte) {
      out[byte] = static_cast<uint8_t>(t / kDocTokens >> (8 * byte));
    }
  }
  weft_segment segment = tokens.segment(parents, children);
  segment.list_offsets = list_offsets.data();
  segment.postings = postings.data();
  segment.posting_width = kWidth;
  weft_error error{};
  weft_resident* resident = nullptr;
  check(backend.load(0, &codec, &segment, 1, &resident, &error), error);

  std::vector<uint32_t> lanes(query_tokens);
  std::iota(lanes.begin(), lanes.end(), 0u);
  const std::vector<uint32_t> weights(query_tokens, 1);
  for (const uint32_t batch : {1u, 8u, 64u, 256u}) {
    std::vector<double> times;
    double read = 0, gathered = 0;
    const int repeats = n_tokens < 1'000'000 ? 3 : 101;
    for (int i = -3; i < repeats; ++i) {  // three to warm up; new queries each time
      const auto rows = random_rows(random, size_t{batch} * query_tokens);
      std::vector<weft_search_query> queries;
      for (uint32_t q = 0; q < batch; ++q) {
        queries.push_back(
            {.struct_size = sizeof(weft_search_query),
             .n_merged = query_tokens,
             .query = query_of(rows.data() + size_t{q} * query_tokens * kDim, query_tokens),
             .lanes = lanes.data(),
             .weights = weights.data(),
             .coarse_shift = 6,
             .coarse_factor = 1'800,
             .fine_factor = 1'800,
             .gain_shift = 0});
      }
      std::vector<uint32_t> docs(batch * kK);
      std::vector<float> scores(batch * kK);
      std::vector<weft_search_counts> counts(batch);
      weft_search_args args{};
      args.struct_size = sizeof args;
      args.n_queries = batch;
      args.queries = queries.data();
      args.nprobe = 16;
      args.budget = 50'000;
      args.ncandidates = 2'000;
      args.nskim = 400;
      args.nrefine = 40;
      args.floor_share = 192;
      args.keep = kK;
      args.docs = docs.data();
      args.scores = scores.data();
      args.counts = counts.data();
      const auto begin = std::chrono::steady_clock::now();
      check(backend.search(resident, &args, &error), error);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      if (i >= 0) {
        times.push_back(took.count());
        read += static_cast<double>(counts[0].postings) / repeats;
        gathered += static_cast<double>(counts[0].gathered) / repeats;
      }
    }
    std::ranges::sort(times);
    const double median = times[times.size() / 2];
    std::printf(
        "{\"tokens\": %llu, \"nbits\": %u, \"query_tokens\": %u, \"batch\": %u, "
        "\"median_ms\": %.4f, \"p95_ms\": %.4f, \"queries_per_s\": %.1f, \"cells\": %u, "
        "\"fine\": %u, \"postings\": %.0f, \"candidates\": %.0f}\n",
        static_cast<unsigned long long>(n_tokens), nbits, query_tokens, batch, 1e3 * median,
        1e3 * times[times.size() * 95 / 100], batch / median, n_cells, n_fine, read, gathered);
    std::fflush(stdout);
  }
  backend.unload(resident);
  return 0;
}
