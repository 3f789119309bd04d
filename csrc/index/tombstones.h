// SPDX-License-Identifier: Apache-2.0
//
// Which documents of a segment are deleted: one small file per segment and generation that deletes
// something in it, written once. Its arrays are in docs/format.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"

namespace weft {

/// Bit i % 64 of words[i / 64] is set where document i is deleted.
struct Tombstones {
  std::vector<uint64_t> words;
  uint64_t n_docs = 0;  ///< of the segment
  uint32_t checksum = 0;
};

/// Words that n_docs bits take.
constexpr size_t bitmap_words(uint64_t n_docs) noexcept {
  return static_cast<size_t>((n_docs + 63) / 64);
}

/// Gives the checksum of the file. Error(invalid_argument) for a bit that stands for no document.
uint32_t write_tombstones(FileWriter file, std::span<const uint64_t> words, uint64_t n_docs);

/// Reads and checks everything: Error(corrupt), Error(incompatible), Error(io).
Tombstones read_tombstones(const std::string& path);

}  // namespace weft
