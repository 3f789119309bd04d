// SPDX-License-Identifier: Apache-2.0
//
// What the programs that time a back end share: opening its library, ending on an error, random numbers.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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
