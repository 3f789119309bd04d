// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace weft {

/// How documents are found: by probing or by scoring all, or whichever the cost model says is cheaper.
enum class SearchPath : uint8_t { cheaper, pruned, exhaustive };

/// How much work a search does. Python owns the defaults (types.py); docs/architecture.md tells what
/// each stage does with its number.
struct SearchParams {
  uint32_t nprobe = 16;          ///< coarse centroids opened per query token
  uint32_t budget = 50'000;      ///< postings read per query
  uint32_t ncandidates = 2'000;  ///< documents kept by select
  uint32_t nskim = 400;          ///< documents scored from their leaders' codes, if above nrefine
  uint32_t nrefine = 40;         ///< documents scored from all their codes
  uint32_t nrerank = 20;         ///< documents scored from the rerank rows; 0 = none
  SearchPath path = SearchPath::cheaper;
  float floor = 0.75f;  ///< share of the last list's score given to a token that met no list
};

/// Error(invalid_argument) unless every number is in its range and large enough for k results.
void validate(const SearchParams& params, uint32_t k);

}  // namespace weft
