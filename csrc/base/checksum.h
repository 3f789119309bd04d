// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78) of n bytes, continuing from `crc` (0 to
/// begin): crc32c(crc32c(0, a), b) is the checksum of a followed by b.
/// crc32c(0, "123456789", 9) == 0xe3069283.
uint32_t crc32c(uint32_t crc, const void* data, size_t n) noexcept;

/// The same without special instructions: what crc32c() uses where the CPU has none.
uint32_t crc32c_portable(uint32_t crc, const void* data, size_t n) noexcept;

}  // namespace weft
