// SPDX-License-Identifier: Apache-2.0
//
// The kernels of pruned search.
#include "cuda/launch_cuda.h"
#include "cuda/stages.h"

namespace weft::cuda {

namespace {

template <Stage kStage>
__global__ void __launch_bounds__(kSelectThreads) block_kernel(const __grid_constant__ Pruned all) {
  __shared__ PrunedShared shared;
  block_share<kStage>(Block{}, all, blockIdx.y, blockIdx.x, gridDim.x, shared);
}

WEFT_BODY uint32_t own_warp() { return blockIdx.x * kStageWarps + threadIdx.x / kWarp; }
WEFT_BODY uint32_t warp_count() { return gridDim.x * kStageWarps; }

template <Stage kStage>
__global__ void __launch_bounds__(kStageWarps* kWarp, 2)
    warp_kernel(const __grid_constant__ Pruned all, uint32_t number) {
  warp_share<kStage>(Warp{}, all, blockIdx.y, number, own_warp(), warp_count());
}

template <Stage kStage, unsigned kSteps>
__global__ void __launch_bounds__(kStageWarps* kWarp, 2)
    centroids_kernel(const __grid_constant__ Pruned all) {
  centroids_share<kStage, kSteps>(Warp{}, all, blockIdx.y, own_warp(), warp_count());
}

template <unsigned kBits, unsigned kSteps, bool kSkims>
__global__ void __launch_bounds__(kStageWarps* kWarp, 2)
    candidates_kernel(const __grid_constant__ Pruned all, uint32_t pass) {
  __shared__ uint32_t leaders[kSkims ? kStageWarps : 1][kLeadersHeld];
  score_candidates<kBits, kSteps, kSkims>(Warp{}, all, blockIdx.y, pass, own_warp(), warp_count(),
                                          leaders[kSkims ? threadIdx.x / kWarp : 0]);
}

}  // namespace

void launch_stage(Stage stage, const Pruned& all, uint32_t number, uint32_t many,
                  cudaStream_t stream) {
  const uint32_t groups = groups_of(stage, all, many);
  const uint32_t n_queries = stage == Stage::count_survivors ? 1 : all.n_queries;
  if (is_for_blocks(stage)) {
    with_block_stage(stage, [&]<Stage kStage>() {
      block_kernel<kStage><<<dim3(groups, n_queries), kSelectThreads, 0, stream>>>(all);
    });
    return;
  }
  const dim3 grid((groups + kStageWarps - 1) / kStageWarps, n_queries);
  with_stage<Stage::count_survivors, Stage::gather, Stage::interact>(stage, [&]<Stage kStage>() {
    warp_kernel<kStage><<<grid, kStageWarps * kWarp, 0, stream>>>(all, number);
  });
  with_stage<Stage::score_cells, Stage::score_children>(stage, [&]<Stage kStage>() {
    if (all.all.dim == 128) {
      centroids_kernel<kStage, 4><<<grid, kStageWarps * kWarp, 0, stream>>>(all);
    } else {
      centroids_kernel<kStage, 0><<<grid, kStageWarps * kWarp, 0, stream>>>(all);
    }
  });
  with_stage<Stage::skim, Stage::refine>(stage, [&]<Stage kStage>() {
    with_instance(all.nbits, all.all.dim, [&]<unsigned kBits, unsigned kSteps>() {
      candidates_kernel<kBits, kSteps, kStage == Stage::skim>
          <<<grid, kStageWarps * kWarp, 0, stream>>>(all, number);
    });
  });
}

}  // namespace weft::cuda
