// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <limits>

#include "base/error.h"

namespace weft {

/// a * b, or Error(code) where the product does not fit. Sizes that come from a file use
/// ErrorCode::corrupt.
inline size_t checked_mul(size_t a, size_t b, ErrorCode code = ErrorCode::invalid_argument) {
  WEFT_REQUIRE(a == 0 || b <= std::numeric_limits<size_t>::max() / a, code, "size overflow: ", a,
               " * ", b, " does not fit ", sizeof(size_t), " bytes");
  return a * b;
}

/// a + b, or Error(code) where the sum does not fit.
inline size_t checked_add(size_t a, size_t b, ErrorCode code = ErrorCode::invalid_argument) {
  WEFT_REQUIRE(b <= std::numeric_limits<size_t>::max() - a, code, "size overflow: ", a, " + ", b,
               " does not fit ", sizeof(size_t), " bytes");
  return a + b;
}

}  // namespace weft
