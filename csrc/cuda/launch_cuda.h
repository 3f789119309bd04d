// SPDX-License-Identifier: Apache-2.0
//
// What the files of the CUDA runtime share.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace weft::cuda {

/// `many`: warps that keep the device busy. Whether it was launched is told by cudaGetLastError().
void launch_stage(Stage stage, const Pruned& all, uint32_t number, uint32_t many,
                  cudaStream_t stream);

}  // namespace weft::cuda
