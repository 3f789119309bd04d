// SPDX-License-Identifier: Apache-2.0
//
// A token's rotation and its residual code: the operations of Rotation::apply(), to_int8(), quantize_row()
// and Codec::encode() in the same order, so that every byte is the CPU's. A warp takes a token; its 32
// threads are the 16 lanes of the CPU's sums twice, each half with a half of the clip factors.
#pragma once

#include "cuda/block.h"
#include "quantizer/packing.h"

namespace weft::cuda {

inline constexpr unsigned kLanesOfSums = 16;  ///< partial sums of quantize_row()
inline constexpr unsigned kClipsAtOnce = 5;

/// How tokens are encoded; arrays in device memory.
struct Encoding {
  const float* factors;  ///< [2][dim]: of the rotation's rounds
  const int8_t* fine;    ///< [n_fine][dim]
  const int32_t* fine_bias;
  const uint32_t* child_offsets;
  const float* clips;  ///< [n_clips]
  uint32_t row_dim, dim, n_clips, nbits;
  float token_scale, fine_scale, widening;
  float least, grid;              ///< of the multipliers
  float plane_least, plane_grid;  ///< of those of the second plane
};

/// The arrays of EncodedTokens. plane: null for none.
struct CodeArrays {
  uint16_t *parents, *steps;
  uint8_t *children, *multipliers, *codes, *plane, *plane_multipliers;
};

/// Walsh-Hadamard transform of x[n], n a power of two.
WEFT_BODY void transform(const Warp& warp, float* x, uint32_t n) {
  for (uint32_t half = 1; half < n; half *= 2) {
    warp.step([&](unsigned t) {
      for (uint32_t pair = t; pair < n / 2; pair += kWarp) {
        const uint32_t i = 2 * pair - (pair & (half - 1));
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    });
  }
}

/// x[dim] = the rotation of row[row_dim].
WEFT_BODY void rotate(const Warp& warp, const Encoding& how, const uint16_t* row, float* x) {
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      x[d] = d < how.row_dim ? half_value(row[d]) * how.factors[d] : 0.0f;
    }
  });
  uint32_t first = 0;
  for (uint32_t n = 4'096; n >= 32; n /= 2) {
    if ((how.dim & n) != 0) {
      transform(warp, x + first, n);
      first += n;
    }
  }
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      x[d] *= how.factors[how.dim + d];
    }
  });
  first = 0;
  for (uint32_t n = 32; n <= 4'096; n *= 2) {
    if ((how.dim & n) != 0) {
      transform(warp, x + first, n);
      first += n;
    }
  }
}

WEFT_BODY float rounded(float value) { return (value + 12'582'912.0f) - 12'582'912.0f; }

/// bytes[dim] = the token on the grid of the centroids. x: scratch [dim].
WEFT_BODY void to_bytes(const Warp& warp, const Encoding& how, const uint16_t* row, float* x,
                        int8_t* bytes) {
  rotate(warp, how, row, x);
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      const float value = x[d] * how.token_scale;
      const float above = value > 0.0f ? (value < 127.0f ? value : 127.0f) : 0.0f;
      const float below = value < 0.0f ? (value > -127.0f ? value : -127.0f) : 0.0f;
      bytes[d] = static_cast<int8_t>(static_cast<int32_t>(rounded(above + below)));
    }
  });
}

/// The level of a value, still a float.
WEFT_BODY float level_of(float value, float inverse, float half, float top) {
  const float position = fmaf(value, inverse, half);
  const float above = position > 0.0f ? position : 0.0f;
  return rounded(above < top ? above : top);
}

/// levels[dim] of x[dim], and the step: see Kernels::quantize_row().
WEFT_BODY float quantize(const Warp& warp, const Encoding& how, const float* x, uint8_t* levels) {
  const auto middle = static_cast<int32_t>((1u << how.nbits) - 1);
  const auto top = static_cast<float>(middle);
  const float half = top * 0.5f;
  Lane<float> widest_of;
  warp.step([&](unsigned t) {
    float widest = 0.0f;
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      const float value = x[d] > 0.0f - x[d] ? x[d] : 0.0f - x[d];
      widest = value > widest ? value : widest;
    }
    widest_of[t] = widest;
  });
  largest_of_all(widest_of);
  const float widest = read(widest_of, 0);
  if (!(widest > 0.0f)) {
    warp.step([&](unsigned t) {
      for (uint32_t d = t; d < how.dim; d += kWarp) {
        levels[d] = static_cast<uint8_t>(middle / 2);
      }
    });
    return 0.0f;
  }

  Lane<float> best, best_step, best_inverse;
  warp.step([&](unsigned t) {
    best[t] = -1.0f;
    best_step[t] = best_inverse[t] = 0.0f;
  });
  const uint32_t n_mine = (how.n_clips + 1) / 2;
  for (uint32_t first = 0; first < n_mine; first += kClipsAtOnce) {
    Lane<float> inverse[kClipsAtOnce], dots[kClipsAtOnce], norms[kClipsAtOnce];
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < kClipsAtOnce; ++i) {
        // The last one stands for those past it: it does not win twice.
        const uint32_t own = first + i < n_mine ? first + i : n_mine - 1;
        const uint32_t clip = t / kLanesOfSums * n_mine + own;
        const float factor = how.clips[clip < how.n_clips ? clip : how.n_clips - 1];
        inverse[i][t] = top / (widest * factor * 2.0f);
        dots[i][t] = norms[i][t] = 0.0f;
      }
      for (uint32_t d = t % kLanesOfSums; d < how.dim; d += kLanesOfSums) {
        const float value = x[d];
        WEFT_UNROLL for (unsigned i = 0; i < kClipsAtOnce; ++i) {
          const float z = level_of(value, inverse[i][t], half, top) - half;
          dots[i][t] = fmaf(value, z, dots[i][t]);
          norms[i][t] = fmaf(z, z, norms[i][t]);
        }
      }
    });
    WEFT_UNROLL for (unsigned i = 0; i < kClipsAtOnce; ++i) {
      sum_by_halving<kLanesOfSums>(dots[i]);
      sum_by_halving<kLanesOfSums>(norms[i]);
    }
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < kClipsAtOnce; ++i) {
        const float score = dots[i][t] * dots[i][t] / norms[i][t];
        if (score > best[t]) {
          best[t] = score;
          best_step[t] = dots[i][t] / norms[i][t];
          best_inverse[t] = inverse[i][t];
        }
      }
    });
  }
  // The first of equals is in the first half.
  const unsigned winner = read(best, kLanesOfSums) > read(best, 0) ? kLanesOfSums : 0;
  const float chosen = read(best_inverse, winner);
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      levels[d] = static_cast<uint8_t>(level_of(x[d], chosen, half, top));
    }
  });
  return read(best_step, winner);
}

/// levels[d] = the level nearest to x[d] / step + middle, in 0..15.
WEFT_BODY void nearest_levels(const Warp& warp, const Encoding& how, const float* x, float step,
                              float middle, uint8_t* levels) {
  const float per_step = step > 0.0f ? 1.0f / step : 0.0f;
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      const float place = x[d] * per_step + (middle + 0.5f);
      const float above = 0.0f < place ? place : 0.0f;
      levels[d] = static_cast<uint8_t>(15.5f < above ? 15.5f : above);
    }
  });
}

/// The multiplier of what levels stand for: the sums of eight lanes, as on the CPU.
WEFT_BODY uint8_t multiplier(const Warp& warp, const Encoding& how, const int8_t* centroid,
                             const uint8_t* levels, float step, int32_t middle, float least,
                             float grid) {
  constexpr unsigned kSums = 8;
  const float half = 0.5f * static_cast<float>(middle);
  Lane<float> sums;
  warp.step([&](unsigned t) {
    float sum = 0.0f;
    for (uint32_t d = t; t < kSums && d < how.dim; d += kSums) {
      const float value = static_cast<float>(centroid[d]) * how.fine_scale +
                          step * (static_cast<float>(levels[d]) - half);
      sum += value * value;
    }
    sums[t] = sum;
  });
  sum_by_halving<kSums>(sums);
  const float squared = read(sums, 0);
  const float wanted = squared > 0.0f ? 1.0f / sqrtf(squared) : 1.0f;
  const float place = (wanted - least) / grid;
  const float above = 0.0f < place ? place : 0.0f;
  return static_cast<uint8_t>((255.0f < above ? 255.0f : above) + 0.5f);
}

/// codes[dim * nbits / 8] of levels[dim]: see pack().
WEFT_BODY void pack_levels(const Warp& warp, const uint8_t* levels, uint32_t dim, uint32_t nbits,
                           uint8_t* codes) {
  warp.step([&](unsigned t) {
    const uint32_t parts = 8 / nbits;
    const auto* const words = reinterpret_cast<const uint32_t*>(levels);
    for (uint32_t w = t; w < dim * nbits / 32; w += kWarp) {
      uint32_t word = 0;
      for (uint32_t part = 0; part < parts; ++part) {
        word |= words[w * parts + part] << nbits * part;
      }
      reinterpret_cast<uint32_t*>(codes)[w] = word;
    }
  });
}

/// Shared by the threads of a warp: f32 [dim], then twice u8 [dim].
constexpr size_t encode_scratch(uint32_t dim) { return size_t{dim} * (sizeof(float) + 2); }

/// Token `number` of the batch, whose row is given, at its fine centroid.
WEFT_BODY void encode(const Warp& warp, const Encoding& how, const uint16_t* row, uint32_t number,
                      uint32_t parent, uint32_t child, const CodeArrays& out, float* scratch) {
  float* const x = scratch;
  auto* const levels = reinterpret_cast<uint8_t*>(scratch + how.dim);
  uint8_t* const lower = levels + how.dim;
  const int8_t* const centroid = how.fine + uint64_t{how.child_offsets[parent] + child} * how.dim;
  const auto middle = static_cast<int32_t>((1u << how.nbits) - 1);
  const float half = 0.5f * static_cast<float>(middle);
  const bool plane = out.plane != nullptr;

  rotate(warp, how, row, x);
  warp.step([&](unsigned t) {
    for (uint32_t d = t; d < how.dim; d += kWarp) {
      x[d] -= static_cast<float>(centroid[d]) * how.fine_scale;
    }
  });
  float step = quantize(warp, how, x, levels);
  const uint16_t stored = half_bits(plane ? step * how.widening : step);
  step = half_value(stored);
  if (plane) {
    nearest_levels(warp, how, x, step, half, levels);
  }
  const uint8_t m = multiplier(warp, how, centroid, levels, step, middle, how.least, how.grid);
  pack_levels(warp, levels, how.dim, how.nbits,
              out.codes + uint64_t{number} * (how.dim * how.nbits / 8));
  uint8_t plane_m = 0;
  if (plane) {
    const float fraction = step / static_cast<float>(kPlaneRatio);
    warp.step([&](unsigned t) {
      for (uint32_t d = t; d < how.dim; d += kWarp) {
        x[d] -= step * (static_cast<float>(levels[d]) - half);
      }
    });
    nearest_levels(warp, how, x, fraction, half, lower);
    warp.step([&](unsigned t) {
      for (uint32_t d = t; d < how.dim; d += kWarp) {
        levels[d] = static_cast<uint8_t>(kPlaneRatio * levels[d] + lower[d]);
      }
    });
    plane_m = multiplier(warp, how, centroid, levels, fraction, kPlaneMiddle, how.plane_least,
                         how.plane_grid);
    pack_levels(warp, lower, how.dim, 4, out.plane + uint64_t{number} * (how.dim / 2));
  }
  warp.step([&](unsigned t) {
    if (t == 0) {
      out.parents[number] = static_cast<uint16_t>(parent);
      out.children[number] = static_cast<uint8_t>(child);
      out.steps[number] = stored;
      out.multipliers[number] = m;
      if (plane) {
        out.plane_multipliers[number] = plane_m;
      }
    }
  });
}

}  // namespace weft::cuda
