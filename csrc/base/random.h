// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/error.h"

namespace weft {

/// The engine's one source of randomness: xoshiro256** seeded by SplitMix64 (both in the public
/// domain, by Blackman and Vigna). A function of (seed, stream) alone: every method uses integers
/// and correctly rounded operations only, so the numbers are the same on every machine. `stream`
/// gives independent sequences to independent uses of one seed. Not thread-safe.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) {
    uint64_t mixer = seed;
    mixer = split_mix(mixer) ^ stream;
    for (uint64_t& word : state_) {
      word = split_mix(mixer);
    }
  }

  /// 64 random bits.
  uint64_t next() {
    const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  /// Uniform in [0, n), without bias. n >= 1.
  uint64_t below(uint64_t n) {
    WEFT_ASSERT(n > 0);
    const uint64_t uneven = (0 - n) % n;  // 2^64 mod n: so many values would be drawn too often
    uint64_t bits = next();
    while (bits < uneven) {
      bits = next();
    }
    return bits % n;
  }

  /// Uniform in [0, 1), a multiple of 2^-24.
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24F; }

  /// Normal with mean 0 and variance 1, by Marsaglia's polar method.
  float normal() {
    for (;;) {
      const double x = signed_uniform();
      const double y = signed_uniform();
      const double r = x * x + y * y;
      if (r < 1.0 && r > 0.0) {
        return static_cast<float>(x * std::sqrt(-2.0 * log(r) / r));
      }
    }
  }

 private:
  static uint64_t split_mix(uint64_t& state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }

  double signed_uniform() { return static_cast<double>(next() >> 11) * 0x1p-52 - 1.0; }

  /// Natural logarithm by 2 artanh((m - 1) / (m + 1)), since libraries differ in the last bit of
  /// theirs.
  static double log(double x) {
    int exponent = 0;
    double m = std::frexp(x, &exponent);  // [0.5, 1)
    if (m < 0.70710678118654752) {
      m *= 2;
      --exponent;
    }
    const double s = (m - 1) / (m + 1);  // |s| < 0.172: the first term left out is below 1e-17
    const double square = s * s;
    double sum = 0;
    for (int k = 21; k >= 1; k -= 2) {
      sum = sum * square + 1.0 / k;
    }
    return exponent * 0.69314718055994531 + 2 * s * sum;
  }

  uint64_t state_[4];
};

}  // namespace weft
