// SPDX-License-Identifier: Apache-2.0
#include "search/params.h"

#include "base/error.h"

namespace weft {

void validate(const SearchParams& params, uint32_t k) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(k >= 1, kBad, "k=0: expected at least 1");
  WEFT_REQUIRE(params.nprobe >= 1 && params.nprobe <= 65'536, kBad, "nprobe=", params.nprobe,
               ": expected 1..65536");
  WEFT_REQUIRE(params.budget >= 1, kBad, "budget=0: expected at least 1 posting");
  WEFT_REQUIRE(params.floor >= 0.0f && params.floor <= 1.0f, kBad, "floor=", params.floor,
               ": expected 0..1");
  if (params.path == SearchPath::exhaustive) {
    WEFT_REQUIRE(params.nrerank == 0 || params.nrerank >= k, kBad, "nrerank=", params.nrerank,
                 ": expected 0 or at least k=", k);
    return;
  }
  WEFT_REQUIRE(params.nrefine >= k, kBad, "nrefine=", params.nrefine, ": expected at least k=", k);
  WEFT_REQUIRE(params.ncandidates >= params.nrefine, kBad, "ncandidates=", params.ncandidates,
               ": expected at least nrefine=", params.nrefine);
  WEFT_REQUIRE(params.nrerank == 0 || params.nrerank >= k, kBad, "nrerank=", params.nrerank,
               ": expected 0 or at least k=", k);
}

}  // namespace weft
