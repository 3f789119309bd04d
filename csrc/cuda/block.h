// SPDX-License-Identifier: Apache-2.0
//
// What a kernel body is written over, so that one text serves a GPU and a test without one.
//
// A body is run by a group of threads. What it does outside of step() is the same for every thread of
// the group; in step(f) every thread t runs f(t), and none goes on before all have. A value that each
// thread has of its own is a PerThread, written by x[t]. On a GPU that is a register and step() ends
// with a barrier; elsewhere it is an array and step() a loop over t, in an order that tests vary: two
// threads that meet in one step give another result in another order.
//
// Float expressions are compiled without contraction on either side, and fmaf() is meant where it
// stands, so that both give the same bits.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_fp16.h>
#define WEFT_BODY __device__ __forceinline__
#define WEFT_UNROLL _Pragma("unroll")
#else
#include "base/half.h"
#define WEFT_BODY inline
#define WEFT_UNROLL
#endif

namespace weft::cuda {

inline constexpr unsigned kWarp = 32;

/// Words that one thread loads at once.
template <unsigned kWords>
struct alignas(kWords % 4 == 0   ? 16
               : kWords % 2 == 0 ? 8
                                 : 4) Words {
  uint32_t at[kWords];
};

/// The four sums of a thread in a product of 16 rows with 8 columns: see multiply().
struct Sums {
  int32_t at[4];
};

/// See same_before().
struct Same {
  uint32_t before, all;
};

#ifdef __CUDACC__

template <class T, unsigned kThreads>
struct PerThread {
  T value;

  WEFT_BODY T& operator[](unsigned) { return value; }
  WEFT_BODY const T& operator[](unsigned) const { return value; }
};

template <unsigned kThreads>
struct Group {
  template <class F>
  WEFT_BODY void step(const F& f) const {
    f(threadIdx.x % kThreads);
    if constexpr (kThreads == kWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
  /// A step of the group's warps, each with its number: f(warp, number).
  template <class F>
  WEFT_BODY void each_warp(const F& f) const {
    f(Group<kWarp>{}, threadIdx.x / kWarp);
    __syncthreads();
  }
};

WEFT_BODY float half_value(uint16_t half) { return __half2float(__ushort_as_half(half)); }
WEFT_BODY uint16_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
WEFT_BODY uint32_t bits_of(float value) { return __float_as_uint(value); }

#else

template <class T, unsigned kThreads>
struct PerThread {
  T values[kThreads];

  T& operator[](unsigned t) { return values[t]; }
  const T& operator[](unsigned t) const { return values[t]; }
};

/// `order`: the threads in the order in which each step runs them; `lanes`: those of a warp.
template <unsigned kThreads>
struct Group {
  const unsigned* order;
  const unsigned* lanes = nullptr;

  template <class F>
  void step(const F& f) const {
    for (unsigned i = 0; i < kThreads; ++i) {
      f(order[i]);
    }
  }
  template <class F>
  void each_warp(const F& f) const {
    for (unsigned i = 0; i < kThreads; ++i) {
      if (order[i] % kWarp == 0) {
        f(Group<kWarp>{lanes}, order[i] / kWarp);
      }
    }
  }
};

/// See multiply(). It stands for hardware: the sanitizers, which make it ten times slower, are to look at
/// what calls it.
template <bool kSigned>
[[gnu::no_sanitize("address", "undefined")]] inline void multiply_in_loops(
    Sums (&sums)[kWarp], const Words<4> (&rows)[kWarp], const uint32_t (&low)[kWarp],
    const uint32_t (&high)[kWarp]) {
  int16_t left[16][32], right[8][32];
  const auto unpack = [](uint32_t word, bool is_signed, int16_t* to) {
    for (unsigned i = 0; i < 4; ++i) {
      const auto byte = static_cast<uint8_t>(word >> (8 * i));
      to[i] = is_signed ? static_cast<int8_t>(byte) : static_cast<int16_t>(byte);
    }
  };
  for (unsigned t = 0; t < kWarp; ++t) {
    for (unsigned i = 0; i < 4; ++i) {
      unpack(rows[t].at[i], true, left[t / 4 + 8 * (i % 2)] + 4 * (t % 4) + 16 * (i / 2));
    }
    unpack(low[t], kSigned, right[t / 4] + 4 * (t % 4));
    unpack(high[t], kSigned, right[t / 4] + 4 * (t % 4) + 16);
  }
  for (unsigned t = 0; t < kWarp; ++t) {
    for (unsigned i = 0; i < 4; ++i) {
      const int16_t* const row = left[t / 4 + 8 * (i / 2)];
      const int16_t* const column = right[2 * (t % 4) + i % 2];
      int32_t sum = 0;
      for (unsigned depth = 0; depth < 32; ++depth) {
        sum += row[depth] * column[depth];
      }
      sums[t].at[i] += sum;
    }
  }
}

inline float half_value(uint16_t half) { return half_to_float(half); }
inline uint16_t half_bits(float value) { return float_to_half(value); }
inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }

#endif

using Warp = Group<kWarp>;
template <class T>
using Lane = PerThread<T, kWarp>;

/// The value of one thread, for all.
template <class T>
WEFT_BODY T read(const Lane<T>& values, unsigned from) {
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffu, values.value, static_cast<int>(from));
#else
  return values[from];
#endif
}

/// Each thread's value becomes the largest of its quad, the threads with the same t / 4. None is NaN.
WEFT_BODY void largest_of_quad(Lane<float>& values) {
#ifdef __CUDACC__
  WEFT_UNROLL for (int apart = 1; apart < 4; apart *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, values.value, apart);
    values.value = other > values.value ? other : values.value;
  }
#else
  for (unsigned quad = 0; quad < kWarp; quad += 4) {
    float largest = values[quad];
    for (unsigned t = quad; t < quad + 4; ++t) {
      largest = values[t] > largest ? values[t] : largest;
    }
    for (unsigned t = quad; t < quad + 4; ++t) {
      values[t] = largest;
    }
  }
#endif
}

/// Each thread's value becomes the largest of all. None is NaN.
WEFT_BODY void largest_of_all(Lane<float>& values) {
#ifdef __CUDACC__
  WEFT_UNROLL for (int apart = 1; apart < 32; apart *= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, values.value, apart);
    values.value = other > values.value ? other : values.value;
  }
#else
  float largest = values[0];
  for (const float value : values.values) {
    largest = value > largest ? value : largest;
  }
  for (float& value : values.values) {
    value = largest;
  }
#endif
}

/// Each thread's value becomes the sum over the kCount threads with the same t / kCount, by halving: first
/// those kCount / 2 apart are added, last neighbours.
template <unsigned kCount>
WEFT_BODY void sum_by_halving(Lane<float>& values) {
#ifdef __CUDACC__
  WEFT_UNROLL for (int apart = kCount / 2; apart > 0; apart /= 2) {
    values.value += __shfl_xor_sync(0xffffffffu, values.value, apart);
  }
#else
  for (unsigned apart = kCount / 2; apart > 0; apart /= 2) {
    const Lane<float> before = values;
    for (unsigned t = 0; t < kWarp; ++t) {
      values[t] = before[t] + before[t ^ apart];
    }
  }
#endif
}

/// One bit for each thread whose value is not 0, that of thread 0 the lowest.
WEFT_BODY uint32_t votes(const Lane<uint32_t>& values) {
#ifdef __CUDACC__
  return __ballot_sync(0xffffffffu, values.value != 0);
#else
  uint32_t bits = 0;
  for (unsigned t = 0; t < kWarp; ++t) {
    bits |= (values[t] != 0 ? 1u : 0u) << t;
  }
  return bits;
#endif
}

/// How many of the lowest n bits are set.
WEFT_BODY uint32_t count_below(uint32_t bits, unsigned n) {
  const uint32_t below = n < 32 ? bits & ((1u << n) - 1) : bits;
#ifdef __CUDACC__
  return static_cast<uint32_t>(__popc(below));
#else
  return static_cast<uint32_t>(__builtin_popcount(below));
#endif
}

WEFT_BODY uint32_t sum_of(const Lane<uint32_t>& values) {
#ifdef __CUDACC__
  return __reduce_add_sync(0xffffffffu, values.value);
#else
  uint32_t sum = 0;
  for (unsigned t = 0; t < kWarp; ++t) {
    sum += values[t];
  }
  return sum;
#endif
}

/// For each thread how many threads have its value: before it, and in all.
WEFT_BODY Lane<Same> same_before(const Lane<uint32_t>& values) {
  Lane<Same> same;
#ifdef __CUDACC__
  const uint32_t bits = __match_any_sync(0xffffffffu, values.value);
  same.value = {count_below(bits, threadIdx.x % kWarp), count_below(bits, kWarp)};
#else
  for (unsigned t = 0; t < kWarp; ++t) {
    same[t] = {0, 0};
    for (unsigned other = 0; other < kWarp; ++other) {
      same[t].all += values[other] == values[t] ? 1 : 0;
      same[t].before += other < t && values[other] == values[t] ? 1 : 0;
    }
  }
#endif
  return same;
}

/// Byte by byte the larger one.
WEFT_BODY uint32_t larger_bytes(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __vmaxu4(a, b);
#else
  uint32_t larger = 0;
  for (unsigned at = 0; at < 32; at += 8) {
    const uint32_t left = a >> at & 255, right = b >> at & 255;
    larger |= (left > right ? left : right) << at;
  }
  return larger;
#endif
}

/// Whether any byte of a is at least that of b.
WEFT_BODY bool any_byte_reaches(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __vcmpgeu4(a, b) != 0;
#else
  bool reaches = false;
  for (unsigned at = 0; at < 32; at += 8) {
    reaches |= (a >> at & 255) >= (b >> at & 255);
  }
  return reaches;
#endif
}

/// Each thread's bytes become the largest ones of the threads with the same t % 8.
WEFT_BODY void largest_bytes(Lane<uint32_t>& values) {
#ifdef __CUDACC__
  WEFT_UNROLL for (int apart = 8; apart < 32; apart *= 2) {
    values.value = __vmaxu4(values.value, __shfl_xor_sync(0xffffffffu, values.value, apart));
  }
#else
  for (unsigned t = 0; t < kWarp; ++t) {
    values[t] = larger_bytes(values[t], values[t % 8]);
    values[t % 8] = values[t];
  }
  for (unsigned t = 0; t < kWarp; ++t) {
    values[t] = values[t % 8];
  }
#endif
}

/// Adds to a number that other threads add to in the same step, and gives what was there. The sum does
/// not depend on who comes first; what is given does.
WEFT_BODY uint32_t add(uint32_t& to, uint32_t value) {
#ifdef __CUDACC__
  return atomicAdd(&to, value);
#else
  to += value;
  return to - value;
#endif
}

/// Raises a number, which other threads may raise in the same step, to `value`; gives what was there.
WEFT_BODY uint64_t raise(uint64_t& to, uint64_t value) {
#ifdef __CUDACC__
  static_assert(sizeof(uint64_t) == sizeof(unsigned long long));
  return atomicMax(reinterpret_cast<unsigned long long*>(&to), value);
#else
  const uint64_t before = to;
  to = value > to ? value : to;
  return before;
#endif
}

/// What a number is that is raised in the same step, or what it was shortly before.
WEFT_BODY uint64_t glance(const uint64_t& at) {
#ifdef __CUDACC__
  return __ldcg(reinterpret_cast<const unsigned long long*>(&at));
#else
  return at;
#endif
}

/// sums += rows * columns, bytes with s32 sums: 16 rows of s8 by 8 columns, 32 deep. This is
/// mma.m16n8k32 of the tensor cores, whose registers hold, for thread t, its quad q = t / 4 and its
/// place p = t % 4 in there:
///
///   rows.at[i]   row q + 8 * (i % 2), depths 4 * p + 16 * (i / 2) .. + 3
///   low, high    column q, depths 4 * p .. + 3, and those 16 further
///   sums.at[i]   row q + 8 * (i / 2), column 2 * p + i % 2
///
/// kSigned: whether the columns are s8 or u8.
template <bool kSigned>
WEFT_BODY void multiply(Lane<Sums>& sums, const Lane<Words<4>>& rows, const Lane<uint32_t>& low,
                        const Lane<uint32_t>& high) {
#ifdef __CUDACC__
  int32_t (&s)[4] = sums.value.at;
  const uint32_t (&r)[4] = rows.value.at;
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
        : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(low.value), "r"(high.value));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
        : "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(low.value), "r"(high.value));
  }
#else
  multiply_in_loops<kSigned>(sums.values, rows.values, low.values, high.values);
#endif
}

}  // namespace weft::cuda
