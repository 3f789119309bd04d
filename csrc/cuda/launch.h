// SPDX-License-Identifier: Apache-2.0
//
// Which instance of a body serves a launch, and which documents, passes and slices a group of threads
// takes: the same for every runtime.
#pragma once

#include "cuda/runtime.h"

namespace weft::cuda {

inline constexpr unsigned kScanWarps = 8;       ///< in a thread block
inline constexpr unsigned kMostBuildWarps = 8;  ///< in a thread block, as far as their scratch fits
inline constexpr size_t kBlockScratch = 48'000;  ///< bytes that any device gives a thread block

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

/// Calls run.template operator()<kStage, kSteps>() for a stage that warps share: all but BuildStage::plan.
template <class Run>
void with_build_stage(BuildStage stage, uint32_t dim, const Run& run) {
  const bool common = dim == 128;
  switch (stage) {
    case BuildStage::bytes:
      return run.template operator()<BuildStage::bytes, 0>();
    case BuildStage::cells:
      return common ? run.template operator()<BuildStage::cells, 4>()
                    : run.template operator()<BuildStage::cells, 0>();
    case BuildStage::visit:
      return run.template operator()<BuildStage::visit, 0>();
    case BuildStage::children:
      return common ? run.template operator()<BuildStage::children, 4>()
                    : run.template operator()<BuildStage::children, 0>();
    default:
      return run.template operator()<BuildStage::codes, 0>();
  }
}

/// Bytes that a warp shares in a stage.
inline size_t build_scratch(BuildStage stage, uint32_t dim) {
  switch (stage) {
    case BuildStage::bytes:
      return dim * sizeof(float);
    case BuildStage::cells:
      return sizeof(NearestScratch);
    case BuildStage::children:
      return sizeof(FoundChild[4][kTileRows]);
    case BuildStage::codes:
      return encode_scratch(dim);
    default:
      return 16;
  }
}

/// What warp `number` of n_warps does of a stage; scratch: 16-byte aligned.
template <BuildStage kStage, unsigned kSteps>
WEFT_BODY void build_share(const Warp& warp, const Batch& batch, uint32_t number, uint32_t n_warps,
                           void* scratch) {
  const auto share = [&](uint32_t n, const auto& work) {
    for (uint32_t unit = number; unit < n; unit += n_warps) {
      work(unit);
    }
  };
  if constexpr (kStage == BuildStage::bytes) {
    share(batch.n, [&](uint32_t token) {
      to_bytes(warp, batch.how, batch.rows + uint64_t{token} * batch.how.row_dim,
               static_cast<float*>(scratch), batch.bytes + uint64_t{token} * batch.how.dim);
    });
  } else if constexpr (kStage == BuildStage::cells) {
    share((batch.n + kTileRows - 1) / kTileRows, [&](uint32_t tile) {
      find_cells<kSteps>(warp, batch, tile, *static_cast<NearestScratch*>(scratch));
    });
  } else if constexpr (kStage == BuildStage::visit) {
    share((batch.n * kPlaces + kWarp - 1) / kWarp,
          [&](uint32_t part) { put_visits(warp, batch, part * kWarp); });
  } else if constexpr (kStage == BuildStage::children) {
    share(*batch.n_tiles, [&](uint32_t tile) {
      find_children<kSteps>(warp, batch, tile, *static_cast<FoundChild(*)[4][kTileRows]>(scratch));
    });
  } else {
    share(batch.n,
          [&](uint32_t token) { write_codes(warp, batch, token, static_cast<float*>(scratch)); });
  }
}

}  // namespace weft::cuda
