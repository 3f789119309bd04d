// SPDX-License-Identifier: Apache-2.0
//
// What the programs that time a back end share: opening its library, ending on an error, random numbers.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <vector>

#include "base/random.h"
#include "cuda/abi.h"

inline constexpr uint32_t kDim = 128;
inline constexpr uint64_t kDocTokens = 100;
inline constexpr uint64_t kTokensPerFine = 50;

/// The back end in the library that the first argument names; ends the program where there is none, or
/// where there are too few arguments.
inline const weft_backend& open_library(int argc, char** argv, const char* usage) {
  if (argc < 3) {
    std::fprintf(stderr, "%s\n", usage);
    std::exit(2);
  }
  void* const library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::exit(1);
  }
  return *reinterpret_cast<const weft_backend* (*)()>(dlsym(library, "weft_backend_v1"))();
}

inline void check(int32_t code, const weft_error& error) {
  if (code != 0) {
    std::fprintf(stderr, "error %d: %s\n", code, error.text);
    std::exit(1);
  }
}

template <class T>
std::vector<T> random_bytes(weft::Random& random, size_t n) {
  std::vector<uint64_t> words((n * sizeof(T) + 7) / 8);
  std::ranges::generate(words, [&] { return random.next(); });
  const T* const first = reinterpret_cast<const T*>(words.data());
  return std::vector<T>(first, first + n);
}

/// Rows of centroids or queries.
inline std::vector<int8_t> random_rows(weft::Random& random, size_t n) {
  auto rows = random_bytes<int8_t>(random, n * kDim);
  std::ranges::replace(rows, int8_t{-128}, int8_t{127});
  return rows;
}

/// What the codes of documents of kDocTokens tokens consist of, but for the centroids.
struct RandomTokens {
  uint64_t n_docs, n_tokens;
  std::vector<uint16_t> steps;
  std::vector<uint8_t> multipliers, codes;
  std::vector<uint64_t> offsets;
  std::vector<uint32_t> ranks;

  /// At least one document.
  RandomTokens(weft::Random& random, uint64_t tokens, uint32_t nbits)
      : n_docs(std::max<uint64_t>(tokens / kDocTokens, 1)),
        n_tokens(n_docs * kDocTokens),
        steps(n_tokens, 0x1800),
        multipliers(random_bytes<uint8_t>(random, n_tokens)),
        codes(random_bytes<uint8_t>(random, n_tokens * kDim * nbits / 8)),
        offsets(n_docs + 1),
        ranks(n_docs) {
    std::iota(ranks.begin(), ranks.end(), 0u);
    for (uint64_t doc = 0; doc <= n_docs; ++doc) {
      offsets[doc] = doc * kDocTokens;
    }
  }

  /// Without lists.
  weft_segment segment(const std::vector<uint16_t>& parents,
                       const std::vector<uint8_t>& children) const {
    return {.struct_size = sizeof(weft_segment),
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
  }
};

/// Where the children of cells begin that have the same number each.
inline std::vector<uint32_t> even_children(uint32_t n_cells, uint32_t n_children) {
  std::vector<uint32_t> offsets(n_cells + 1);
  for (uint32_t cell = 0; cell <= n_cells; ++cell) {
    offsets[cell] = cell * n_children;
  }
  return offsets;
}

inline weft_query query_of(const int8_t* rows, uint32_t n_tokens) {
  return {.struct_size = sizeof(weft_query),
          .n_tokens = n_tokens,
          .rows = rows,
          .base_shift = 6,
          .base_unit = 1e-3f,
          .code_unit = 5e-4f};
}
