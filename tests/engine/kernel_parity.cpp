// SPDX-License-Identifier: Apache-2.0
//
// Runs every kernel of every usable table and of scalar on the same random input, in buffers
// without a byte to spare, and compares the output bit by bit. Prints the tables compared; fails
// with the name of the first kernel that differs.
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/dispatch.h"
#include "quantizer/packing.h"

namespace {

using namespace weft::kernels;

struct Random {
  uint64_t state;

  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  uint32_t below(uint32_t n) { return next() % n; }
  float uniform() { return static_cast<float>(next()) / 1073741824.0f - 1.0f; }
};

template <class T>
std::vector<T> fill(Random& random, size_t n) {
  std::vector<T> out(n);
  for (T& value : out) {
    if constexpr (std::is_same_v<T, float>) {
      value = random.uniform();
    } else if constexpr (std::is_same_v<T, int8_t>) {
      value = static_cast<int8_t>(static_cast<int>(random.below(255)) - 127);
    } else {
      value = static_cast<T>(random.next());
    }
  }
  return out;
}

/// The output of one run of a kernel, as bytes.
class Output {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    bytes_.insert(bytes_.end(), bytes, bytes + values.size() * sizeof(T));
  }
  template <class T>
  void add(T value) {
    add(std::vector<T>{value});
  }
  bool operator==(const Output&) const = default;

 private:
  std::vector<unsigned char> bytes_;
};

template <class Run>
void compare(const Kernels& table, const char* entry, const Run& run) {
  const Kernels& scalar = *available().back();
  if (!(run(table) == run(scalar))) {
    std::fprintf(stderr, "%s: %s differs from scalar\n", table.name, entry);
    throw 1;
  }
}

void compare_tiles(const Kernels& table, Random& random, size_t groups, size_t dim, size_t n) {
  const size_t lanes = groups * kLanes;
  const auto data = fill<int8_t>(random, lanes * dim);
  std::vector<int32_t> sums(lanes);
  for (size_t i = 0; i < data.size(); ++i) {
    const size_t group = i / (kLanes * dim);
    sums[group * kLanes + i / 4 % kLanes] += data[i];
  }
  const ByteTile tile{data.data(), sums.data(), groups, dim};
  const auto rows = fill<int8_t>(random, n * dim);
  compare(table, "tile_dots", [&](const Kernels& k) {
    std::vector<int32_t> dots(n * lanes);
    k.tile_dots(tile, rows.data(), n, dots.data());
    Output out;
    out.add(dots);
    return out;
  });
  const auto bias = fill<int8_t>(random, n);
  const std::vector<int32_t> wide_bias(bias.begin(), bias.end());
  compare(table, "nearest", [&](const Kernels& k) {
    std::vector<int32_t> keys(4 * lanes, INT32_MIN);
    k.nearest(tile, rows.data(), wide_bias.data(), n, 17, 12, keys.data());
    Output out;
    out.add(keys);
    return out;
  });
  compare(table, "row_dots", [&](const Kernels& k) {
    std::vector<int32_t> dots(n);
    k.row_dots(data.data(), rows.data(), n, dim, dots.data());
    Output out;
    out.add(dots);
    return out;
  });

  const uint32_t n_cells = 9;
  const auto base = fill<int16_t>(random, n_cells * lanes);
  std::vector<uint32_t> base_rows(n);
  for (uint32_t& row : base_rows) row = static_cast<uint32_t>(random.below(n_cells));
  std::vector<uint16_t> parents(n);
  for (uint16_t& parent : parents) parent = static_cast<uint16_t>(random.below(n_cells + 3));
  const auto base_scale = fill<float>(random, n);
  const auto code_scale = fill<float>(random, n);
  std::vector<uint32_t> odd;
  for (uint32_t token = 1; token < n; token += 2) odd.push_back(token);
  for (const unsigned nbits : {1u, 2u, 4u, 8u}) {
    const auto codes = fill<uint8_t>(random, n * dim * nbits / 8);
    const CodeBlock block{codes.data(),
                          base.data(),
                          base_rows.data(),
                          base_scale.data(),
                          code_scale.data(),
                          (1 << nbits) - 1,
                          nbits,
                          n,
                          nullptr};
    CodeBlock some = block;
    some.n = odd.size();
    some.tokens = odd.data();
    for (const CodeBlock& given : {block, some}) {
      compare(table, "score_codes", [&](const Kernels& k) {
        std::vector<float> best(lanes, -std::numeric_limits<float>::infinity());
        std::vector<float> scores(given.n * lanes);
        k.score_codes(tile, given, best.data(), scores.data());
        Output out;
        out.add(best);
        out.add(scores);
        return out;
      });
    }
    if (groups == 1) {  // of base rows, too
      std::vector<int8_t> planes(weft::planes_size(dim, nbits) + 64);
      int8_t* const aligned =
          planes.data() + (64 - reinterpret_cast<uintptr_t>(planes.data()) % 64);
      weft::code_row(data.data(), dim, nbits, aligned);
      compare(table, "score_row", [&](const Kernels& k) {
        std::vector<float> scores(n);
        k.score_row({aligned, 1234, dim}, block, scores.data());
        Output out;
        out.add(scores);
        return out;
      });
    }
  }

  const auto lane_floats = fill<float>(random, lanes * dim);
  const auto row_floats = fill<float>(random, n * dim);
  const FloatTile float_tile{lane_floats.data(), groups, dim};
  compare(table, "maxsim_rows", [&](const Kernels& k) {
    std::vector<float> best(lanes, -std::numeric_limits<float>::infinity());
    k.maxsim_rows(float_tile, row_floats.data(), dim, n, best.data());
    Output out;
    out.add(best);
    return out;
  });

  const size_t n_rows = 40;
  const auto scores = fill<uint8_t>(random, (n_rows + 255) * lanes);
  std::vector<uint32_t> cells(n_cells + 1);
  for (uint32_t& cell : cells) cell = random.below(n_rows) | random.below(2) << 31;
  const auto children = fill<uint8_t>(random, n);
  const ScoreTable score_table{scores.data(), cells.data(), n_cells, groups};
  compare(table, "table_maxsim", [&](const Kernels& k) {
    Output out;
    std::vector<uint8_t> best(lanes);
    out.add(k.table_maxsim(score_table, parents.data(), children.data(), n, best.data()));
    out.add(best);
    return out;
  });
  std::vector<uint8_t> least(lanes);
  for (uint8_t& bound : least) bound = static_cast<uint8_t>(255 - random.below(3));
  compare(table, "table_leaders", [&](const Kernels& k) {
    std::vector<uint32_t> leaders(n + 1);
    leaders.resize(k.table_leaders(score_table, parents.data(), children.data(), n, least.data(),
                                   leaders.data()));
    Output out;
    out.add(leaders);
    return out;
  });
}

void compare_flat(const Kernels& table, Random& random, size_t n) {
  const size_t padded = (n + 31) / 32 * 32;
  auto dots = fill<int32_t>(random, padded);
  compare(table, "quantize_dots", [&](const Kernels& k) {
    std::vector<int16_t> base(padded);
    std::vector<uint8_t> scores(padded);
    k.quantize_dots(dots.data(), padded, 14, 321, base.data(), scores.data());
    Output out;
    out.add(base);
    out.add(scores);
    return out;
  });
  const auto row = fill<float>(random, padded);
  const std::vector<float> factors = {0.4f, 0.6f, 0.8f, 1.0f, 0.6f};
  for (const int32_t middle : {1, 3, 15, 255}) {
    compare(table, "quantize_row", [&](const Kernels& k) {
      std::vector<uint8_t> levels(padded);
      Output out;
      out.add(k.quantize_row(row.data(), padded, factors.data(), factors.size(), middle,
                             levels.data()));
      out.add(levels);
      return out;
    });
  }
  compare(table, "to_int8", [&](const Kernels& k) {
    std::vector<int8_t> bytes(padded);
    k.to_int8(row.data(), padded, 150.0f, bytes.data());
    Output out;
    out.add(bytes);
    return out;
  });
  const auto halves = fill<uint16_t>(random, n);
  compare(table, "half_to_float", [&](const Kernels& k) {
    std::vector<float> floats(n);
    k.half_to_float(halves.data(), n, floats.data());
    Output out;
    out.add(floats);
    return out;
  });
  const auto bits = fill<uint32_t>(random, n);
  std::vector<float> floats(n);
  for (size_t i = 0; i < n; ++i) std::memcpy(&floats[i], &bits[i], sizeof(float));
  compare(table, "float_to_half", [&](const Kernels& k) {
    std::vector<uint16_t> out_halves(n);
    k.float_to_half(floats.data(), n, out_halves.data());
    Output out;
    out.add(out_halves);
    return out;
  });

  const uint32_t limit = 500;
  const auto words = fill<uint32_t>(random, limit + 1);
  for (const unsigned width : {2u, 3u}) {
    auto docs = fill<uint8_t>(random, n * width + 4);
    for (size_t i = 1; i < docs.size(); i += width) docs[i] &= 1;
    for (size_t i = 2; i < docs.size(); i += 3) docs[i] = width == 3 ? 0 : docs[i];
    compare(table, "accumulate", [&](const Kernels& k) {
      auto sums = words;
      k.accumulate(docs.data(), n, width, limit, 5, 77, sums.data());
      Output out;
      out.add(sums);
      return out;
    });
  }
  const auto sums = fill<uint32_t>(random, n);
  compare(table, "histogram", [&](const Kernels& k) {
    std::vector<uint32_t> bins(100);
    k.histogram(sums.data(), n, 14, 100, bins.data());
    Output out;
    out.add(bins);
    return out;
  });
  compare(table, "collect", [&](const Kernels& k) {
    std::vector<uint32_t> found(n + 16);
    const size_t count = k.collect(sums.data(), n, kSumMask / 2, found.data());
    found.resize(count);
    Output out;
    out.add(found);
    return out;
  });
}

}  // namespace

int main() {
  try {
    for (const Kernels* table : available()) {
      Random random{42};
      for (const size_t dim : {32u, 96u, 128u, 4128u}) {
        for (const size_t groups : {1u, 2u, 3u}) {
          for (const size_t n : {0u, 1u, 5u, 8u, 19u}) {
            if (dim < 4128 || n == 5) compare_tiles(*table, random, groups, dim, n);
          }
        }
      }
      for (const size_t n : {0u, 1u, 15u, 16u, 17u, 333u, 4128u}) compare_flat(*table, random, n);
      std::printf("%s\n", table->name);
    }
  } catch (int) {
    return 1;
  }
  return 0;
}
