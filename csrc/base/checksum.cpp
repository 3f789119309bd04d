// SPDX-License-Identifier: Apache-2.0
#include "base/checksum.h"

#include <array>
#include <bit>
#include <cstring>

// The CPU's own instruction, where the compiler knows it: whether this CPU has it, one step of 8
// bytes, one of a byte.
#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define WEFT_CRC_TARGET __attribute__((target("sse4.2")))
#define WEFT_CRC_USABLE (__builtin_cpu_supports("sse4.2") != 0)
#define WEFT_CRC_WORD(crc, word) static_cast<uint32_t>(_mm_crc32_u64(crc, word))
#define WEFT_CRC_BYTE(crc, byte) _mm_crc32_u8(crc, byte)
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_acle.h>
#ifdef __linux__
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define WEFT_CRC_USABLE ((getauxval(AT_HWCAP) & HWCAP_CRC32) != 0)
#else
#define WEFT_CRC_USABLE true
#endif
#ifdef __clang__
#define WEFT_CRC_TARGET __attribute__((target("crc")))
#else
#define WEFT_CRC_TARGET __attribute__((target("+crc")))
#endif
#define WEFT_CRC_WORD(crc, word) __crc32cd(crc, word)
#define WEFT_CRC_BYTE(crc, byte) __crc32cb(crc, byte)
#endif

namespace weft {
namespace {

static_assert(std::endian::native == std::endian::little, "weft needs a little-endian machine");

using Tables = std::array<std::array<uint32_t, 256>, 8>;

/// tables[k][b]: the checksum of byte b followed by k zero bytes.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0x82f63b78U : 0U);
    }
    tables[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t b = 0; b < 256; ++b) {
      const uint32_t before = tables[k - 1][b];
      tables[k][b] = (before >> 8) ^ tables[0][before & 0xffU];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint64_t load_word(const unsigned char* p) noexcept {
  uint64_t word = 0;
  std::memcpy(&word, p, sizeof word);
  return word;
}

#ifdef WEFT_CRC_USABLE
WEFT_CRC_TARGET uint32_t crc32c_instruction(uint32_t crc, const void* data, size_t n) noexcept {
  const auto* p = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    crc = WEFT_CRC_WORD(crc, load_word(p));
  }
  for (; n > 0; --n, ++p) {
    crc = WEFT_CRC_BYTE(crc, *p);
  }
  return ~crc;
}
#endif

}  // namespace

uint32_t crc32c_portable(uint32_t crc, const void* data, size_t n) noexcept {
  const auto* p = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    const uint64_t word = load_word(p) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) {
      crc ^= kTables[7 - k][(word >> (8 * k)) & 0xffU];
    }
  }
  for (; n > 0; --n, ++p) {
    crc = (crc >> 8) ^ kTables[0][(crc ^ *p) & 0xffU];
  }
  return ~crc;
}

uint32_t crc32c(uint32_t crc, const void* data, size_t n) noexcept {
#ifdef WEFT_CRC_USABLE
  static const bool usable = WEFT_CRC_USABLE;
  if (usable) {
    return crc32c_instruction(crc, data, n);
  }
#endif
  return crc32c_portable(crc, data, n);
}

}  // namespace weft
