// SPDX-License-Identifier: Apache-2.0
//
// Which instance of a body serves a launch, and which documents, passes and slices a group of threads
// takes: the same for every runtime.
#pragma once

#include "cuda/runtime.h"

namespace weft::cuda {

inline constexpr unsigned kScanWarps = 8;  ///< in a thread block

/// Calls run.template operator()<kBits, kSteps>().
template <class Run>
void with_instance(unsigned nbits, uint32_t dim, const Run& run) {
  const auto with_steps = [&]<unsigned kBits>() {
    if (dim == 128) {
      run.template operator()<kBits, 4>();
    } else {
      run.template operator()<kBits, 0>();
    }
  };
  switch (nbits) {
    case 1:
      return with_steps.template operator()<1>();
    case 2:
      return with_steps.template operator()<2>();
    case 4:
      return with_steps.template operator()<4>();
    default:
      return with_steps.template operator()<8>();
  }
}

/// Warps in a row take the passes over one document, so that its codes come from the cache for all
/// but the first.
template <unsigned kBits, unsigned kSteps>
WEFT_BODY void scan_share(const Warp& warp, const ScanLaunch& launch, uint32_t number,
                          uint32_t n_warps) {
  const uint32_t stride = n_warps / launch.n_passes;
  const uint32_t first = number / launch.n_passes;
  if (first < stride) {
    scan<kBits, kSteps>(warp, launch.all, launch.allow, launch.passes[number % launch.n_passes],
                        first, stride);
  }
}

WEFT_BODY void select_share(const Block& block, const SelectLaunch& launch, uint32_t slice,
                            uint32_t query, uint64_t* keys) {
  Selection one = launch.first;
  if (one.scores != nullptr) {
    one.scores += query * launch.scores_stride;
  }
  if (one.keys != nullptr) {
    one.keys += query * launch.keys_stride;
  }
  one.kept += query * launch.kept_stride;
  select(block, one, slice, keys);
}

}  // namespace weft::cuda
