// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/file.h"
#include "base/parallel.h"
#include "base/views.h"
#include "index/segment.h"
#include "quantizer/codec.h"

namespace weft {

/// The ids of n documents, packed: document i is bytes [offsets[i], offsets[i + 1]).
struct IdTable {
  std::span<const uint8_t> bytes;
  std::span<const uint64_t> offsets;
};

struct SegmentStats {
  uint32_t checksum = 0;
  uint64_t n_docs = 0;
  uint64_t n_tokens = 0;
  uint64_t n_postings = 0;
  uint64_t n_bytes = 0;
};

/// Some documents of a segment: ranges [first, last) of ordinals, ascending.
struct SegmentPart {
  std::shared_ptr<const Segment> segment;
  std::span<const std::array<uint32_t, 2>> runs;
};

/// Writes one segment file: encodes the rows block by block, in bounded memory, and builds its lists.
/// `docs`: f16 unit rows, possibly a mapped file larger than memory; document i gets ordinal i.
/// Without a codec the rows themselves are stored. Same bytes for any number of threads, and whether
/// `device` encodes or, where it is null, the CPU.
/// Throws invalid_argument (shapes, over 2^24 tokens), io, cancelled; device, out_of_memory.
SegmentStats write_segment(FileWriter file, std::shared_ptr<const Codec> codec,
                           RaggedView<const uint16_t> docs, const IdTable& ids, Rerank rerank,
                           size_t threads, const Progress& progress,
                           const BuildDevice* device = nullptr);

/// Writes one segment file of documents of other segments, in the order given: ids, rows and codes byte
/// for byte, since the rows that codes were made from are gone; new lists. The segments share a codec, or
/// have none, and must have been verified. Throws invalid_argument (ranges, over 2^24 tokens), io, cancelled.
SegmentStats merge_segments(FileWriter file, std::span<const SegmentPart> parts,
                            const Progress& progress);

}  // namespace weft
