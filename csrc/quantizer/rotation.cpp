// SPDX-License-Identifier: Apache-2.0
#include "quantizer/rotation.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace weft {

namespace {

/// Two butterfly stages, distances `half` and 2 * `half`, in one pass over the data.
void two_stages(float* x, size_t n, size_t half) {
  for (size_t start = 0; start < n; start += 4 * half) {
    float* const a = x + start;
    float* const b = a + half;
    float* const c = b + half;
    float* const d = c + half;
    for (size_t i = 0; i < half; ++i) {
      const float sum_ab = a[i] + b[i];
      const float gap_ab = a[i] - b[i];
      const float sum_cd = c[i] + d[i];
      const float gap_cd = c[i] - d[i];
      a[i] = sum_ab + sum_cd;
      b[i] = gap_ab + gap_cd;
      c[i] = sum_ab - sum_cd;
      d[i] = gap_ab - gap_cd;
    }
  }
}

/// Walsh-Hadamard transform without its factor; n is a power of two and at least 32.
void transform(float* x, size_t n) {
  size_t half = 1;
  for (; 4 * half <= n; half *= 4) {
    two_stages(x, n, half);
  }
  if (half < n) {
    for (size_t i = 0; i < half; ++i) {
      const float a = x[i];
      const float b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

void transform_blocks(float* x, const std::vector<size_t>& blocks) {
  for (const size_t n : blocks) {
    transform(x, n);
    x += n;
  }
}

}  // namespace

Rotation::Rotation(size_t dim, uint64_t seed) : dim_(dim), padded_dim_(pad_dim(dim)) {
  WEFT_REQUIRE(dim >= 1 && dim <= kMaxDim, ErrorCode::invalid_argument, "dim=", dim,
               ": expected 1..", kMaxDim);
  for (size_t left = padded_dim_; left > 0; left -= std::bit_floor(left)) {
    rounds_[0].blocks.push_back(std::bit_floor(left));
  }
  rounds_[1].blocks.assign(rounds_[0].blocks.rbegin(), rounds_[0].blocks.rend());
  Random random(seed);
  for (Round& round : rounds_) {
    for (const size_t n : round.blocks) {
      const auto factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
      for (size_t i = 0; i < n; ++i) {
        round.factors.push_back(random.next() >> 63 != 0 ? -factor : factor);
      }
    }
  }
}

void Rotation::apply(const float* row, float* out) const {
  const float* factors = rounds_[0].factors.data();
  for (size_t d = 0; d < dim_; ++d) {
    out[d] = row[d] * factors[d];
  }
  std::fill(out + dim_, out + padded_dim_, 0.0f);
  transform_blocks(out, rounds_[0].blocks);
  factors = rounds_[1].factors.data();
  for (size_t d = 0; d < padded_dim_; ++d) {
    out[d] *= factors[d];
  }
  transform_blocks(out, rounds_[1].blocks);
}

void Rotation::invert(const float* in, float* row) const {
  // The transform is symmetric and its own inverse but for the factor, which is in the signs.
  std::vector<float> x(in, in + padded_dim_);
  transform_blocks(x.data(), rounds_[1].blocks);
  for (size_t d = 0; d < padded_dim_; ++d) {
    x[d] *= rounds_[1].factors[d];
  }
  transform_blocks(x.data(), rounds_[0].blocks);
  for (size_t d = 0; d < dim_; ++d) {
    row[d] = x[d] * rounds_[0].factors[d];
  }
}

}  // namespace weft
