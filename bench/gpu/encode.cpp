// SPDX-License-Identifier: Apache-2.0
//
// Times the encoding of tokens by a back end through its C interface, with a codec of random numbers as large
// as the rules make it for so many tokens, and the labelling of a round of k-means.
//
//   encode LIBRARY TOKENS [NBITS]
//
// prints a line of JSON for each. Times are the caller's: rows in pageable host memory to codes there. Random
// rows are the worst case for what is passed over: no two of them want the same groups of cells.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "base/half.h"
#include "library.h"

namespace {

constexpr uint64_t kMostRows = uint64_t{1} << 22;  // in host memory; taken again and again
constexpr uint32_t kBatch = 1u << 18;
constexpr uint32_t kGroupedFrom = 2'048;

template <class T>
std::vector<T> random_values(weft::Random& random, size_t n, T least, uint64_t width) {
  std::vector<T> out(n);
  std::ranges::generate(
      out, [&] { return static_cast<T>(least + static_cast<T>(random.below(width))); });
  return out;
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Calls run(rows) until so many rows are done, after a first time that is not counted; seconds.
template <class Run>
double timed(uint64_t n_rows, uint64_t n_tokens, const Run& run) {
  run(std::min<uint64_t>(n_rows, 2 * kBatch));
  const auto begin = std::chrono::steady_clock::now();
  for (uint64_t done = 0; done < n_tokens; done += n_rows) {
    run(std::min(n_rows, n_tokens - done));
  }
  return seconds_since(begin);
}

}  // namespace

int main(int argc, char** argv) {
  const weft_backend& backend = open_library(argc, argv, "encode LIBRARY TOKENS [NBITS]");
  const uint64_t n_tokens = std::max<uint64_t>(std::strtoull(argv[2], nullptr, 10), 1);
  const auto nbits = static_cast<uint32_t>(argc > 3 ? std::atoi(argv[3]) : 4);

  weft::Random random(7, 0);
  const double root = std::sqrt(static_cast<double>(n_tokens));
  uint64_t n = std::clamp<uint64_t>(std::bit_floor(static_cast<uint64_t>(root)), 16, 65'536);
  while (n < 65'536 && n_tokens / kTokensPerFine > 128 * n) {
    n *= 2;
  }
  const auto n_cells = static_cast<uint32_t>(n);
  const auto n_children =
      static_cast<uint32_t>(std::clamp<uint64_t>(n_tokens / kTokensPerFine / n, 1, 256));
  const auto side = static_cast<uint32_t>(std::sqrt(static_cast<double>(n_cells)));
  const uint32_t n_groups = n_cells < kGroupedFrom ? 1 : side * 2 / 4 * 4;

  const auto cells = random_values<int8_t>(random, size_t{n_cells} * kDim, -40, 81);
  const auto means = random_values<int8_t>(random, size_t{n_groups} * kDim, -20, 41);
  const auto fine = random_values<int8_t>(random, size_t{n_cells} * n_children * kDim, -60, 121);
  const auto cell_bias = random_values<int32_t>(random, n_cells, -60'000, 10'000);
  const auto mean_bias = random_values<int32_t>(random, n_groups, -10'000, 1'000);
  const auto fine_bias =
      random_values<int32_t>(random, size_t{n_cells} * n_children, -80'000, 10'000);
  std::vector<uint32_t> numbers(n_cells), starts(n_groups + 1);
  std::iota(numbers.begin(), numbers.end(), 0u);
  for (uint32_t group = 0; group <= n_groups; ++group) {
    starts[group] = static_cast<uint32_t>(uint64_t{n_cells} * group / n_groups);
  }
  const auto child_offsets = even_children(n_cells, n_children);
  std::vector<float> factors(size_t{2} * kDim), clips(20);
  std::ranges::generate(factors, [&] { return random.below(2) == 0 ? 0.0884f : -0.0884f; });
  for (size_t i = 0; i < clips.size(); ++i) {
    clips[i] = 0.6f + 0.02f * static_cast<float>(i);
  }
  const weft_nearest nearest{.struct_size = sizeof nearest,
                             .dim = kDim,
                             .n = n_cells,
                             .n_groups = n_groups,
                             .shift = 7,
                             .rows = cells.data(),
                             .bias = cell_bias.data(),
                             .numbers = numbers.data(),
                             .starts = starts.data(),
                             .means = means.data(),
                             .mean_bias = mean_bias.data(),
                             .mean_shifts = {7, 7, 7, 7}};
  const weft_encoding encoding{.struct_size = sizeof encoding,
                               .nbits = nbits,
                               .row_dim = kDim,
                               .n_clips = static_cast<uint32_t>(clips.size()),
                               .factors = factors.data(),
                               .fine = fine.data(),
                               .fine_bias = fine_bias.data(),
                               .child_offsets = child_offsets.data(),
                               .clips = clips.data(),
                               .token_scale = 359.2f,
                               .fine_scale = 1.0f / 359.2f,
                               .widening = 1.1f,
                               .multiplier_least = 0.75f,
                               .multiplier_step = 1.0f / 512,
                               .plane_multiplier_least = 0.984375f,
                               .plane_multiplier_step = 1.0f / 8192};

  const uint64_t n_rows = std::min(n_tokens, kMostRows);
  const auto at_once = static_cast<uint32_t>(std::min<uint64_t>(n_rows, kBatch));
  std::vector<uint16_t> rows(n_rows * kDim);
  std::ranges::generate(rows, [&] {
    return weft::float_to_half((static_cast<float>(random.below(2'001)) - 1'000.0f) / 6'500.0f);
  });
  std::vector<uint16_t> parents(at_once), steps(at_once);
  std::vector<uint8_t> children(at_once), multipliers(at_once);
  std::vector<uint8_t> codes(size_t{at_once} * kDim * nbits / 8);
  weft_error error{};
  weft_builder* builder = nullptr;
  const auto begin = std::chrono::steady_clock::now();
  check(backend.open_builder(0, &nearest, &encoding, at_once, &builder, &error), error);
  const double opening = seconds_since(begin);
  const double encode = timed(n_rows, n_tokens, [&](uint64_t count) {
    const weft_encode_args args{.struct_size = sizeof args,
                                .n = count,
                                .rows = rows.data(),
                                .parents = parents.data(),
                                .steps = steps.data(),
                                .children = children.data(),
                                .multipliers = multipliers.data(),
                                .codes = codes.data(),
                                .plane = nullptr,
                                .plane_multipliers = nullptr,
                                .take = [](void*, uint64_t, uint64_t) -> int32_t { return 0; },
                                .data = nullptr};
    check(backend.encode(builder, &args, &error), error);
  });
  backend.close_builder(builder);
  const auto print = [&](const char* stage, double took, uint64_t compared, uint64_t row_bytes) {
    std::printf(
        "{\"stage\": \"%s\", \"tokens\": %llu, \"nbits\": %u, \"cells\": %u, \"children\": %u, "
        "\"open_s\": %.3f, \"seconds\": %.4f, \"tokens_per_s\": %.4g, "
        "\"operations_per_token\": %.4g, \"upload_bytes\": %.4g}\n",
        stage, static_cast<unsigned long long>(n_tokens), nbits, n_cells, n_children, opening, took,
        static_cast<double>(n_tokens) / took, 2.0 * kDim * static_cast<double>(compared),
        static_cast<double>(n_tokens * row_bytes));
    std::fflush(stdout);
  };
  print("encode", encode, uint64_t{n_cells} + n_groups + 4 * n_children, 2 * kDim);

  const auto bytes = random_values<int8_t>(random, n_rows * kDim, -60, 121);
  std::vector<uint16_t> labels(n_rows);
  check(backend.open_builder(0, &nearest, nullptr, at_once, &builder, &error), error);
  const double label = timed(n_rows, n_tokens, [&](uint64_t count) {
    const weft_label_args args{.struct_size = sizeof args,
                               .n = count,
                               .rows = bytes.data(),
                               .labels = labels.data(),
                               .done = nullptr,
                               .data = nullptr};
    check(backend.label(builder, &args, &error), error);
  });
  backend.close_builder(builder);
  print("label", label, uint64_t{n_cells} + n_groups, kDim);
  return 0;
}
