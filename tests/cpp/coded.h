// SPDX-License-Identifier: Apache-2.0
//
// Codes and queries as the plug-in takes them, with the definition of a score.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "check.h"
#include "cuda/abi.h"

namespace weft::test {

inline constexpr int kDevices = 3;  ///< of libweft_emu.so: orders of threads

/// Segments with everything in them that a damaged file may hold, too.
struct Collection {
  struct Segment {
    std::vector<uint64_t> offsets{0};
    std::vector<uint16_t> parents, steps;
    std::vector<uint8_t> children, multipliers, codes;
    std::vector<uint32_t> ranks;
    std::vector<uint64_t> list_offsets{0};
    std::vector<uint32_t> lists;  ///< documents at fine centroids, one after another
    std::vector<uint8_t> postings;
  };
  uint32_t nbits, dim;
  std::vector<int8_t> fine, coarse;
  std::vector<uint32_t> child_offsets{0};
  std::vector<Segment> segments;
  std::vector<weft_segment> plain;

  static constexpr uint32_t kCells = 5;
  static constexpr uint32_t kWidth = 3;  ///< bytes of a posting

  Collection(Random& random, uint32_t bits, uint32_t dims, const std::vector<uint32_t>& n_docs,
             uint64_t longest)
      : nbits(bits), dim(dims) {
    for (uint32_t cell = 0; cell < kCells; ++cell) {
      child_offsets.push_back(child_offsets.back() + 1 + static_cast<uint32_t>(random.below(4)));
    }
    for (size_t i = 0; i < size_t{n_fine() + kCells} * dim; ++i) {
      auto& of = i < size_t{n_fine()} * dim ? fine : coarse;
      of.push_back(static_cast<int8_t>(random.below(255)));
      of.back() = of.back() == -128 ? int8_t{0} : of.back();
    }
    uint32_t n_all = 0;
    for (const uint32_t n : n_docs) {
      n_all += n;
    }
    std::vector<uint32_t> ranks;
    for (uint32_t rank = 0; rank < n_all; ++rank) {
      ranks.insert(ranks.begin() + static_cast<ptrdiff_t>(random.below(rank + 1)), rank);
    }
    for (const uint32_t n : n_docs) {
      Segment& s = segments.emplace_back();
      for (uint32_t doc = 0; doc < n; ++doc) {
        const uint64_t length = random.below(4) == 0 ? random.below(3) : random.below(longest + 1);
        s.offsets.push_back(s.offsets.back() + length);
        s.ranks.push_back(ranks.back());
        ranks.pop_back();
      }
      for (uint64_t t = 0; t < s.offsets.back(); ++t) {
        const bool damaged = random.below(50) == 0;
        s.parents.push_back(static_cast<uint16_t>(random.below(damaged ? 65'536 : kCells)));
        const uint64_t cell = std::min<uint64_t>(s.parents.back(), kCells - 1);
        const uint64_t n_children = child_offsets[cell + 1] - child_offsets[cell];
        s.children.push_back(static_cast<uint8_t>(random.below(damaged ? 256 : n_children)));
        s.steps.push_back(
            static_cast<uint16_t>(damaged ? random.next() : 0x2000 + random.below(99)));
        s.multipliers.push_back(static_cast<uint8_t>(random.next()));
        for (uint32_t i = 0; i < dim * nbits / 8; ++i) {
          s.codes.push_back(static_cast<uint8_t>(random.next()));
        }
      }
    }
    for (Segment& s : segments) {
      add_lists(random, s);
      plain.push_back({.struct_size = sizeof(weft_segment),
                       .n_docs = static_cast<uint32_t>(s.ranks.size()),
                       .n_tokens = s.parents.size(),
                       .offsets = s.offsets.data(),
                       .parents = s.parents.data(),
                       .steps = s.steps.data(),
                       .children = s.children.data(),
                       .multipliers = s.multipliers.data(),
                       .codes = s.codes.data(),
                       .ranks = s.ranks.data(),
                       .list_offsets = s.list_offsets.data(),
                       .postings = s.postings.data(),
                       .posting_width = kWidth});
    }
  }

  /// Every document at each centroid that it has a token at, and here and there one that is none.
  void add_lists(Random& random, Segment& s) const {
    for (uint32_t fine_number = 0; fine_number < n_fine(); ++fine_number) {
      for (uint32_t doc = 0; doc < s.ranks.size(); ++doc) {
        bool is_there = false;
        for (uint64_t t = s.offsets[doc]; t < s.offsets[doc + 1]; ++t) {
          is_there = is_there || fine_of(s, t) == fine_number;
        }
        if (is_there) {
          s.lists.push_back(random.below(99) == 0 ? 0xffff00u : doc);
        }
      }
      s.list_offsets.push_back(s.lists.size());
    }
    for (const uint32_t doc : s.lists) {
      for (uint32_t byte = 0; byte < kWidth; ++byte) {
        s.postings.push_back(static_cast<uint8_t>(doc >> (8 * byte)));
      }
    }
  }

  uint32_t n_fine() const { return child_offsets.back(); }
  weft_codec codec() const {
    return {.struct_size = sizeof(weft_codec),
            .nbits = nbits,
            .dim = dim,
            .n_coarse = kCells,
            .n_fine = n_fine(),
            .fine = fine.data(),
            .child_offsets = child_offsets.data(),
            .multiplier_least = 0.75f,
            .multiplier_step = 1.0f / 512,
            .coarse = coarse.data()};
  }

  /// Level of dim d of token t: see kernels::CodeBlock.
  int32_t level(const Segment& s, uint64_t t, uint32_t d) const {
    const uint32_t per_byte = 8 / nbits, quad = d / 4;
    const uint8_t byte = s.codes[t * (dim * nbits / 8) + 4 * (quad / per_byte) + d % 4];
    return byte >> (nbits * (quad % per_byte)) & ((1 << nbits) - 1);
  }

  /// At least n_fine() for what only a damaged file holds.
  uint32_t fine_of(const Segment& s, uint64_t t) const {
    return child_offsets[std::min<uint32_t>(s.parents[t], kCells)] + s.children[t];
  }

  float score(const Segment& s, uint32_t doc, const weft_query& query) const {
    std::vector<uint64_t> tokens(s.offsets[doc + 1] - s.offsets[doc]);
    std::iota(tokens.begin(), tokens.end(), s.offsets[doc]);
    return score(s, tokens, query);
  }
  /// Of some tokens of a document alone.
  float score(const Segment& s, const std::vector<uint64_t>& tokens,
              const weft_query& query) const {
    float sum = 0.0f;
    for (uint32_t i = 0; i < query.n_tokens; ++i) {
      const int8_t* row = query.rows + size_t{i} * dim;
      float best = -std::numeric_limits<float>::infinity();
      for (const uint64_t t : tokens) {
        const uint32_t of = fine_of(s, t);
        int32_t residual = 0, base = 0;
        for (uint32_t d = 0; d < dim; ++d) {
          residual += row[d] * (2 * level(s, t, d) - ((1 << nbits) - 1));
          base += of < n_fine() ? row[d] * fine[size_t{of} * dim + d] : 0;
        }
        base = of < n_fine() ? base >> query.base_shift : INT16_MIN;
        const float m = 0.75f + static_cast<float>(s.multipliers[t]) / 512;
        const float from_base = m * query.base_unit * static_cast<float>(base);
        const float scale = half_to_float(s.steps[t]) * (m * query.code_unit);
        const float similarity = std::fma(scale, static_cast<float>(residual), from_base);
        best = similarity > best ? similarity : best;
      }
      sum += best;
    }
    return sum;
  }
};

struct Queries {
  std::vector<std::vector<int8_t>> rows;
  std::vector<weft_query> plain;

  Queries(Random& random, uint32_t dim, const std::vector<uint32_t>& lengths, int widest) {
    for (const uint32_t n : lengths) {
      auto& of = rows.emplace_back(size_t{n} * dim);
      for (int8_t& value : of) {
        value = static_cast<int8_t>(
            static_cast<int>(random.below(static_cast<uint64_t>(2 * widest + 1))) - widest);
      }
      plain.push_back({.struct_size = sizeof(weft_query),
                       .n_tokens = n,
                       .rows = of.data(),
                       .base_shift = 3,
                       .base_unit = 0.00125f,
                       .code_unit = 0.0037f});
    }
  }
};

struct Loaded {
  const weft_backend& backend = *weft_backend_v1();
  weft_resident* resident = nullptr;
  weft_error error{};

  Loaded(int device, const Collection& all) {
    const weft_codec codec = all.codec();
    CHECK(backend.load(device, &codec, all.plain.data(), static_cast<uint32_t>(all.plain.size()),
                       &resident, &error) == 0);
  }
  ~Loaded() { backend.unload(resident); }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;
};

}  // namespace weft::test
