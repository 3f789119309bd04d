// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "base/buffer.h"
#include "kernels/kernels.h"
#include "quantizer/rotation.h"

namespace weft {

/// int8 per unit of length: 127 is four standard deviations of an element of a rotated unit row.
inline float token_scale(size_t padded_dim) {
  return static_cast<float>(127.0 * std::sqrt(static_cast<double>(padded_dim)) / 4.0);
}

/// Rotates f16 rows, one at a time.
class RowRotator {
 public:
  RowRotator(const kernels::Kernels& kernel, const Rotation& rotation)
      : kernel_(kernel),
        rotation_(rotation),
        scale_(token_scale(rotation.padded_dim())),
        row_(rotation.dim()) {}

  /// rotated: f32 [padded_dim]; bytes: the same as int8, for the tree.
  void operator()(const uint16_t* row, float* rotated, int8_t* bytes) {
    kernel_.half_to_float(row, rotation_.dim(), row_.data());
    rotation_.apply(row_.data(), rotated);
    kernel_.to_int8(rotated, rotation_.padded_dim(), scale_, bytes);
  }

 private:
  const kernels::Kernels& kernel_;
  const Rotation& rotation_;
  float scale_;
  AlignedBuffer<float> row_;
};

}  // namespace weft
