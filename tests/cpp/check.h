// SPDX-License-Identifier: Apache-2.0
//
// Just enough to test with: CHECK prints what failed and where, and main returns CHECK_RESULT.
#pragma once

#include <cstdio>

#include "base/error.h"

namespace weft::test {

inline int failures = 0;

inline void report(bool passed, const char* what, const char* file, int line) {
  if (!passed) {
    ++failures;
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
  }
}

}  // namespace weft::test

#define CHECK(...) \
  ::weft::test::report(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

/// The statement throws Error(ErrorCode::code).
#define CHECK_ERROR(expected, ...)                                                              \
  try {                                                                                         \
    __VA_ARGS__;                                                                                \
    ::weft::test::report(false, "no Error from: " #__VA_ARGS__, __FILE__, __LINE__);            \
  } catch (const ::weft::Error& caught) {                                                       \
    ::weft::test::report(caught.code() == ::weft::ErrorCode::expected, caught.what(), __FILE__, \
                         __LINE__);                                                             \
  }

#define CHECK_RESULT (::weft::test::failures == 0 ? 0 : 1)
