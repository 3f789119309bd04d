// SPDX-License-Identifier: Apache-2.0
//
// The part of generic.inl that multiplies tiles: scan() walks over register blocks of rows, a
// `Rows` makes blocks of rows that it can read, a `Dots` multiplies, and a visitor takes the sums.

// ---- Integer tiles ------------------------------------------------------------------------------

#ifndef WEFT_OWN_DOTS
/// Rows whose sums are in registers together.
struct Block {
  const uint8_t* rows[kRows];

  /// Moves kR rows to `out` as `Row` wants them; there is room for Row::kStaged * kR * dim bytes.
  template <class Row, size_t kR>
  WEFT_INLINE void stage(size_t dim, uint8_t* out) {
    for (size_t r = 0; r < kR; ++r) {
      uint8_t* target = out + r * dim * Row::kStaged;
      for (size_t d = 0; d < dim; d += kChunk) Row::stage(rows[r] + d, target + d * Row::kStaged);
      rows[r] = target;
    }
  }
};

/// acc[r][g][lane] += sum_d tile[group + g][lane][d] * rows[r][d].
struct WordDots {
  static constexpr bool kHalves = false;

  template <size_t kR, size_t kG, bool kHalf>
  WEFT_INLINE static void run(const ByteTile& tile, size_t group, const Block& block,
                              Ints (&acc)[kR][kG]) {
    const int8_t* quads = tile.data + group * tile.dim * kLanes;
    const size_t group_size = tile.dim * kLanes;
    for (size_t d = 0; d < tile.dim; d += kChunk) {
      WEFT_UNROLL for (size_t i = 0; i < kChunk; i += 4) {
        Quads q[kG];
        WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
          q[g] = load_quads(quads + g * group_size + (d + i) * kLanes);
        }
        WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
          const Word word = broadcast_word(block.rows[r] + d + i);
          WEFT_UNROLL for (size_t g = 0; g < kG; ++g) acc[r][g] = dot(acc[r][g], q[g], word);
        }
      }
    }
  }
};

#endif

/// Visits n rows in register blocks: `rows.load(first, count, block)` makes a block of kR rows (the
/// last of the count rows fills the block up), `visit(first, count, group, acc)` receives the dots.
template <class Dots, class Rows, size_t kR, size_t kG, bool kHalf, class Visit>
WEFT_INLINE void scan_group(const ByteTile& tile, size_t group, const Block& block, size_t first,
                            size_t count, const Visit& visit) {
  Ints acc[kR][kG];
  WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
    const Ints sums = load_ints(tile.sums + (group + g) * kLanes);
    const Ints start = Rows::kOffset == 0 ? fill(0) : mul(fill(-Rows::kOffset), sums);
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) acc[r][g] = start;
  }
  Dots::template run<kR, kG, kHalf>(tile, group, block, acc);
  visit(first, count, group, acc);
}

template <class Dots, size_t kR, class Rows, class Visit>
WEFT_INLINE void scan_block(const ByteTile& tile, size_t first, size_t count, Rows& rows,
                            const Visit& visit) {
  Block block;
  rows.template load<kR>(first, count, block);
  // Where half of the last group is padding, the groups that are read together with it leave it out.
  const size_t whole = Dots::kHalves && tile.half ? tile.groups - 1 : tile.groups;
  size_t group = 0;
  for (; group + kGroups <= whole; group += kGroups) {
    scan_group<Dots, Rows, kR, kGroups, false>(tile, group, block, first, count, visit);
  }
  if constexpr (Dots::kHalves) {
    if (whole < tile.groups) {
      if (group + kGroups <= tile.groups) {
        scan_group<Dots, Rows, kR, kGroups, true>(tile, group, block, first, count, visit);
      } else {
        scan_group<Dots, Rows, kR, 1, true>(tile, group, block, first, count, visit);
      }
      return;
    }
  }
  if constexpr (kGroups > 1) {
    for (; group < tile.groups; ++group) {
      scan_group<Dots, Rows, kR, 1, false>(tile, group, block, first, count, visit);
    }
  }
}

template <class Dots, class Rows, class Visit>
WEFT_INLINE void scan(const ByteTile& tile, size_t n, Rows& rows, const Visit& visit) {
  constexpr size_t kHalf = kRows / 2;
  size_t first = 0;
  while (n - first > kHalf) {
    const size_t left = n - first;
    const size_t count = left < kRows ? left : kRows;
    scan_block<Dots, kRows>(tile, first, count, rows, visit);
    first += count;
  }
  if constexpr (kHalf > 0) {
    if (first < n) scan_block<Dots, kHalf>(tile, first, n - first, rows, visit);
  }
}

/// Row r of a block of `count` rows from place `first` on; the last one stands for those past it.
WEFT_INLINE size_t row_number(const uint32_t* order, size_t first, size_t r, size_t count) {
  const size_t place = first + (r < count ? r : count - 1);
  return order == nullptr ? place : order[place];
}

/// Rows of `dim` bytes, one after the other, or those that `order` lists.
template <class Row>
struct ByteRows {
  static constexpr int32_t kOffset = Row::kOffset;

  const uint8_t* rows;
  size_t dim;
  const uint32_t* order;
  alignas(64) uint8_t staged[Row::kStaged == 0 ? 64 : Row::kStaged * kRows * kMaxDim];

  ByteRows(const void* first_row, size_t row_size, const uint32_t* listed = nullptr)
      : rows(static_cast<const uint8_t*>(first_row)), dim(row_size), order(listed) {}

  template <size_t kR>
  WEFT_INLINE void load(size_t first, size_t count, Block& out) {
    for (size_t r = 0; r < kR; ++r) out.rows[r] = rows + row_number(order, first, r, count) * dim;
    if constexpr (Row::kStaged > 0) out.template stage<Row, kR>(dim, staged);
  }
};

/// The same of codes narrower than a byte.
template <unsigned kBits>
struct NarrowRows {
  static constexpr int32_t kOffset = 0;

  const uint8_t* codes;
  size_t dim;
  const uint32_t* order;
  alignas(64) uint8_t expanded[kRows * kMaxDim];

  NarrowRows(const uint8_t* first_row, size_t row_size, const uint32_t* listed)
      : codes(first_row), dim(row_size), order(listed) {}

  template <size_t kR>
  WEFT_INLINE void load(size_t first, size_t count, Block& out) {
    for (size_t r = 0; r < kR; ++r) {
      const uint8_t* source = codes + row_number(order, first, r, count) * (dim * kBits / 8);
      uint8_t* target = expanded + r * dim;
      out.rows[r] = target;
      for (size_t d = 0; d < dim; d += kChunk) {
        expand_codes<kBits>(source + d * kBits / 8, target + d);
      }
    }
  }
};

struct StoreDots {
  int32_t* dots;
  size_t lanes;

  template <size_t kR, size_t kG>
  WEFT_INLINE void operator()(size_t first, size_t count, size_t group,
                              const Ints (&acc)[kR][kG]) const {
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
      if (r < count) {
        int32_t* out = dots + (first + r) * lanes + group * kLanes;
        WEFT_UNROLL for (size_t g = 0; g < kG; ++g) store(out + g * kLanes, acc[r][g]);
      }
    }
  }
};

template <class Dots>
void tile_dots(const ByteTile& tile, const int8_t* rows, size_t n, int32_t* dots) {
  ByteRows<SignedRow> source(rows, tile.dim);
  scan<Dots>(tile, n, source, StoreDots{dots, tile.lanes()});
}

struct KeepBest {
  const int32_t* bias;
  uint32_t first_row;
  unsigned shift;
  int32_t* keys;
  size_t lanes;

  template <size_t kR, size_t kG>
  WEFT_INLINE void operator()(size_t first, size_t count, size_t group,
                              const Ints (&acc)[kR][kG]) const {
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
      int32_t* out = keys + (group + g) * kLanes;
      Ints best[4];
      WEFT_UNROLL for (size_t i = 0; i < 4; ++i) best[i] = load_ints(out + i * lanes);
      WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
        if (r < count) {
          const size_t row = first_row + first + r;
          const Ints value = shift_right(add(acc[r][g], fill(bias[first + r])), shift);
          Ints key = add(mul(value, fill(65536)), fill(static_cast<int32_t>(65535 - row)));
          WEFT_UNROLL for (size_t i = 0; i < 4; ++i) {
            const Ints loser = smaller(best[i], key);
            best[i] = larger(best[i], key);
            key = loser;
          }
        }
      }
      WEFT_UNROLL for (size_t i = 0; i < 4; ++i) store(out + i * lanes, best[i]);
    }
  }
};

template <class Dots>
void nearest(const ByteTile& tile, const int8_t* rows, const int32_t* bias, size_t n,
             uint32_t first, unsigned shift, int32_t* keys) {
  ByteRows<SignedRow> source(rows, tile.dim);
  scan<Dots>(tile, n, source, KeepBest{bias, first, shift, keys, tile.lanes()});
}

void row_dots(const int8_t* x, const int8_t* rows, size_t n, size_t dim, int32_t* out) {
  for (size_t i = 0; i < n; ++i) out[i] = byte_dot(x, rows + i * dim, dim);
}

void quantize_dots(const int32_t* dots, size_t n, unsigned shift, int16_t factor, int16_t* base,
                   uint8_t* table) {
  for (size_t i = 0; i < n; i += kLanes) {
    const Ints value = shift_right(load_ints(dots + i), shift);
    const Ints clipped = smaller(larger(value, fill(-32768)), fill(32767));
    store_shorts(base + i, clipped);
    const Ints scaled = shift_right(add(mul(clipped, fill(factor)), fill(1 << 14)), 15);
    store_bytes(table + i, smaller(larger(scaled, fill(0)), fill(255)));
  }
}

// ---- Residual codes -----------------------------------------------------------------------------

WEFT_INLINE const int16_t* base_row(const CodeBlock& block, size_t place, size_t lanes) {
  return block.base + block.base_rows[place] * lanes;
}

/// Rows of codes. Base scores and codes are fetched some rows ahead: base scores lie anywhere, and
/// documents scattered, so that the processor's own prefetching starts too late.
template <class Source>
struct CodeRows {
  static constexpr int32_t kOffset = Source::kOffset;
  static constexpr size_t kAhead = 16;

  const CodeBlock& block;
  size_t lanes;
  size_t width;
  Source source;

  CodeRows(const CodeBlock& codes, size_t dim, size_t n_lanes)
      : block(codes),
        lanes(n_lanes),
        width(dim * codes.nbits / 8),
        source(codes.codes, dim, codes.tokens) {}

  WEFT_INLINE void fetch_bases(size_t first, size_t count) {
    for (size_t place = first; place < first + count && place < block.n; ++place) {
      const int16_t* base = base_row(block, place, lanes);
      for (size_t l = 0; l < lanes; l += 32) WEFT_PREFETCH(base + l);
    }
  }

  template <size_t kR>
  WEFT_INLINE void load(size_t first, size_t count, Block& out) {
    if (first == 0) fetch_bases(0, kAhead);
    fetch_bases(first + kAhead, kR);
    if (block.tokens == nullptr) {
      const uint8_t* ahead = block.codes + (first + kAhead) * width;
      for (size_t i = 0; i < kR * width; i += 64) WEFT_PREFETCH(ahead + i);
    }
    source.template load<kR>(first, count, out);
  }
};

struct KeepScores {
  const CodeBlock& block;
  const int32_t* sums;
  size_t lanes;
  float* best;
  float* scores;

  template <size_t kR, size_t kG>
  WEFT_INLINE void operator()(size_t first, size_t count, size_t group,
                              const Ints (&acc)[kR][kG]) const {
    Floats top[kG];
    Ints middle[kG];
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
      top[g] = load_floats(best + (group + g) * kLanes);
      middle[g] = mul(fill(block.middle), load_ints(sums + (group + g) * kLanes));
    }
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
      if (r < count) {
        const size_t place = first + r;
        const int16_t* base = base_row(block, place, lanes) + group * kLanes;
        const Floats base_scale = fill(block.base_scale[place]);
        const Floats code_scale = fill(block.code_scale[place]);
        WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
          const Floats residual = to_floats(sub(add(acc[r][g], acc[r][g]), middle[g]));
          const Floats start = mul(base_scale, to_floats(load_shorts(base + g * kLanes)));
          const Floats score = fma(code_scale, residual, start);
          if (scores != nullptr) store(scores + place * lanes + (group + g) * kLanes, score);
          top[g] = larger(score, top[g]);
        }
      }
    }
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) store(best + (group + g) * kLanes, top[g]);
  }
};

template <class Dots, class Source>
WEFT_INLINE void score_rows(const ByteTile& tile, const CodeBlock& block, float* best,
                            float* scores) {
  CodeRows<Source> source(block, tile.dim, tile.lanes());
  scan<Dots>(tile, block.n, source, KeepScores{block, tile.sums, tile.lanes(), best, scores});
}

/// `NarrowDots` serves codes of at most 4 bits.
template <class Dots, class NarrowDots>
void score_codes(const ByteTile& tile, const CodeBlock& block, float* best, float* scores) {
  switch (block.nbits) {
    case 1:
      return score_rows<NarrowDots, NarrowRows<1>>(tile, block, best, scores);
    case 2:
      return score_rows<NarrowDots, NarrowRows<2>>(tile, block, best, scores);
    case 4:
      return score_rows<NarrowDots, NarrowRows<4>>(tile, block, best, scores);
    default:
      return score_rows<Dots, ByteRows<WideRow>>(tile, block, best, scores);
  }
}

/// The codes of one token against a row.
template <unsigned kBits>
WEFT_INLINE int32_t code_row_dot(const CodeRow& row, const uint8_t* codes, size_t width) {
  constexpr size_t kBytes = 64;
  constexpr size_t kPlanes = 8 / kBits;
  Ints sums = fill(0);
  size_t i = 0;
  for (; i + kBytes <= width; i += kBytes) {
    sums = code_dot<kBits>(sums, codes + i, row.planes + i * kPlanes);
  }
  if (i < width) {
    alignas(64) uint8_t rest[kBytes] = {};
    __builtin_memcpy(rest, codes + i, width - i);
    sums = code_dot<kBits>(sums, rest, row.planes + i * kPlanes);
  }
  return sum(sums);
}

template <unsigned kBits>
WEFT_INLINE void score_row_of(const CodeRow& row, const CodeBlock& block, float* scores) {
  const size_t width = row.dim * kBits / 8;
  for (size_t t = 0; t < block.n; ++t) {
    const int32_t dot = code_row_dot<kBits>(row, block.codes + t * width, width);
    const auto residual = static_cast<float>(2 * dot - block.middle * row.sum);
    const float start = block.base_scale[t] * static_cast<float>(*base_row(block, t, kLanes));
    scores[t] = __builtin_fmaf(block.code_scale[t], residual, start);
  }
}

void score_row(const CodeRow& row, const CodeBlock& block, float* scores) {
  switch (block.nbits) {
    case 1:
      return score_row_of<1>(row, block, scores);
    case 2:
      return score_row_of<2>(row, block, scores);
    case 4:
      return score_row_of<4>(row, block, scores);
    default:
      return score_row_of<8>(row, block, scores);
  }
}
