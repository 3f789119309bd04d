// SPDX-License-Identifier: Apache-2.0
//
// Building through the plug-in's C interface, under the sanitizers, beside a definition of its own: loops
// over tokens and centroids, and sorts.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/half.h"
#include "centroids.h"
#include "check.h"

namespace {

using weft::Random;
using weft::test::bytes_of, weft::test::dot, weft::test::small;
using Table = weft::test::CentroidTable;

constexpr int kDevices = 3;  // orders of threads
struct Opened {
  const weft_backend& backend = *weft_backend_v1();
  weft_builder* builder = nullptr;
  weft_error error{};

  Opened(int device, const weft_nearest& table, const weft_encoding* encoding, uint32_t at_once) {
    CHECK(backend.open_builder(device, &table, encoding, at_once, &builder, &error) == 0);
  }
  ~Opened() { backend.close_builder(builder); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
};

void compare_labels(const Table& table, const std::vector<int8_t>& rows, uint32_t at_once) {
  const size_t n = rows.size() / table.dim;
  for (int device = 0; device < kDevices; ++device) {
    const Opened opened(device, table.plain, nullptr, at_once);
    std::vector<uint16_t> labels(n);
    uint64_t done = 0;
    const weft_label_args args{.struct_size = sizeof args,
                               .n = n,
                               .rows = rows.data(),
                               .labels = labels.data(),
                               .done = [](void* data, uint64_t now) -> int32_t {
                                 *static_cast<uint64_t*>(data) += now;
                                 return 0;
                               },
                               .data = &done};
    weft_error error{};
    CHECK(opened.backend.label(opened.builder, &args, &error) == 0);
    CHECK(done == n);
    for (size_t i = 0; i < n; ++i) {
      CHECK(labels[i] == table.cells(rows.data() + i * table.dim)[0]);
    }
  }
}

void test_labels() {
  Random random(1, 0);
  for (const uint32_t dim : {32u, 128u}) {
    for (const int widest : {1, 127}) {  // nearly all sums equal, and none
      compare_labels(Table(random, dim, 1, 1, widest), bytes_of(random, size_t{5} * dim, widest),
                     2);
      compare_labels(Table(random, dim, 77, 1, widest), bytes_of(random, size_t{100} * dim, widest),
                     40);
      compare_labels(Table(random, dim, 300, 64, widest),
                     bytes_of(random, size_t{70} * dim, widest), 64);
    }
  }
}

void test_extreme_values_do_not_overflow() {
  Random random(2, 0);
  Table table(random, 4'128, 9, 1, 127);
  std::fill(table.rows.begin(), table.rows.end(), int8_t{-127});
  std::vector<int8_t> rows(size_t{3} * 4'128, int8_t{127});
  std::fill_n(rows.begin(), 4'128, int8_t{-127});
  compare_labels(table, rows, 2);
}

/// A codec of random numbers, and what it makes of a row, by the formulas.
struct Codec {
  Table table;
  uint32_t row_dim, nbits;
  std::vector<uint32_t> child_offsets{0};
  std::vector<int8_t> fine;
  std::vector<int32_t> fine_bias;
  std::vector<float> factors, clips;
  weft_encoding plain{};

  Codec(Random& random, uint32_t dims, uint32_t bits, uint32_t n_cells, uint32_t most_children,
        int widest)
      : table(random, (dims + 31) / 32 * 32, n_cells, 1, widest), row_dim(dims), nbits(bits) {
    for (uint32_t cell = 0; cell < n_cells; ++cell) {
      child_offsets.push_back(child_offsets.back() + 1 +
                              static_cast<uint32_t>(random.below(most_children)));
    }
    fine = bytes_of(random, size_t{child_offsets.back()} * table.dim, widest);
    for (uint32_t i = 0; i < child_offsets.back(); ++i) {
      fine_bias.push_back(-static_cast<int32_t>(random.below(static_cast<uint64_t>(widest))));
    }
    for (uint32_t i = 0; i < 2 * table.dim; ++i) {
      factors.push_back(random.below(2) == 0 ? 0.125f : -0.25f);
    }
    for (uint32_t i = 0; i < (nbits == 1 ? 1u : 7u); ++i) {
      clips.push_back(0.4f + 0.1f * static_cast<float>(i));
    }
    plain = {.struct_size = sizeof plain,
             .nbits = nbits,
             .row_dim = row_dim,
             .n_clips = static_cast<uint32_t>(clips.size()),
             .factors = factors.data(),
             .fine = fine.data(),
             .fine_bias = fine_bias.data(),
             .child_offsets = child_offsets.data(),
             .clips = clips.data(),
             .token_scale = 37.5f,
             .fine_scale = 1.0f / 37.5f,
             .widening = 1.1f,
             .multiplier_least = 0.75f,
             .multiplier_step = 1.0f / 512,
             .plane_multiplier_least = 0.984375f,
             .plane_multiplier_step = 1.0f / 8192};
  }

  std::vector<float> rotated(const uint16_t* row) const {
    std::vector<float> x(table.dim);
    for (uint32_t d = 0; d < row_dim; ++d) {
      x[d] = weft::half_to_float(row[d]) * factors[d];
    }
    std::vector<uint32_t> blocks;
    for (uint32_t left = table.dim; left > 0; left &= left - 1) {
      blocks.insert(blocks.begin(), left & (~left + 1));
    }
    for (const int round : {0, 1}) {
      uint32_t first = 0;
      for (const uint32_t n : blocks) {
        for (uint32_t half = 1; half < n; half *= 2) {
          for (uint32_t i = 0; i < n; ++i) {
            if ((i & half) == 0) {
              const float a = x[first + i], b = x[first + i + half];
              x[first + i] = a + b;
              x[first + i + half] = a - b;
            }
          }
        }
        first += n;
      }
      for (uint32_t d = 0; d < table.dim && round == 0; ++d) {
        x[d] *= factors[table.dim + d];
      }
      std::reverse(blocks.begin(), blocks.end());
    }
    return x;
  }

  std::vector<int8_t> bytes(const std::vector<float>& x) const {
    std::vector<int8_t> out;
    for (const float value : x) {
      const float inside = std::clamp(value * plain.token_scale, -127.0f, 127.0f);
      out.push_back(static_cast<int8_t>(std::nearbyint(inside)));
    }
    return out;
  }

  /// Cell and child of a row.
  std::array<uint32_t, 2> place(const std::vector<int8_t>& row) const {
    std::array<uint32_t, 2> out{};
    int32_t best = INT32_MIN;
    for (const uint32_t cell : table.cells(row.data())) {
      for (uint32_t i = child_offsets[cell]; i < child_offsets[cell + 1]; ++i) {
        const int32_t value =
            dot(row.data(), fine.data() + size_t{i} * table.dim, table.dim) + fine_bias[i];
        if (value > best) {
          best = value;
          out = {cell, i - child_offsets[cell]};
        }
      }
    }
    return out;
  }

  /// The level of a value as Kernels::quantize_row() has it.
  float level(float value, float inverse) const {
    const auto top = static_cast<float>((1u << nbits) - 1);
    return std::nearbyint(std::clamp(std::fma(value, inverse, 0.5f * top), 0.0f, top));
  }

  float step(const std::vector<float>& x, std::vector<uint8_t>& levels) const {
    const auto top = static_cast<float>((1u << nbits) - 1);
    float widest = 0.0f, best = -1.0f, found = 0.0f;
    for (const float value : x) {
      widest = std::max(widest, std::fabs(value));
    }
    for (const float clip : clips) {
      const float inverse = top / (widest * clip * 2.0f);
      std::array<float, 16> dots{}, norms{};
      for (size_t d = 0; d < x.size(); ++d) {
        const float z = level(x[d], inverse) - 0.5f * top;
        dots[d % 16] = std::fma(x[d], z, dots[d % 16]);
        norms[d % 16] = std::fma(z, z, norms[d % 16]);
      }
      for (size_t half = 8; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) {
          dots[i] += dots[i + half];
          norms[i] += norms[i + half];
        }
      }
      if (dots[0] * dots[0] / norms[0] > best) {
        best = dots[0] * dots[0] / norms[0];
        found = dots[0] / norms[0];
        for (size_t d = 0; d < x.size(); ++d) {
          levels[d] = static_cast<uint8_t>(level(x[d], inverse));
        }
      }
    }
    return found;
  }

  uint8_t multiplier(const int8_t* centroid, const std::vector<uint8_t>& levels, float step_,
                     float middle, float least, float grid) const {
    std::array<float, 8> sums{};
    for (size_t d = 0; d < levels.size(); ++d) {
      const float value = static_cast<float>(centroid[d]) * plain.fine_scale +
                          step_ * (static_cast<float>(levels[d]) - 0.5f * middle);
      sums[d % 8] += value * value;
    }
    for (size_t half = 4; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) {
        sums[i] += sums[i + half];
      }
    }
    const float wanted = 1.0f / std::sqrt(sums[0]);
    return static_cast<uint8_t>(std::clamp((wanted - least) / grid, 0.0f, 255.0f) + 0.5f);
  }

  /// Level of dim d in a packed code: see kernels::CodeBlock.
  static uint32_t unpacked(const uint8_t* code, uint32_t bits, uint32_t d) {
    const uint32_t per_byte = 8 / bits, quad = d / 4;
    return code[4 * (quad / per_byte) + d % 4] >> (bits * (quad % per_byte)) & ((1u << bits) - 1);
  }
};

struct Codes {
  std::vector<uint16_t> parents, steps;
  std::vector<uint8_t> children, multipliers, codes, plane, plane_multipliers;
};

/// What a device makes of rows, batch by batch.
Codes encoded(const Codec& codec, const std::vector<uint16_t>& rows, int device, uint32_t at_once,
              bool plane) {
  const Opened opened(device, codec.table.plain, &codec.plain, at_once);
  const uint32_t code_bytes = codec.table.dim * codec.nbits / 8, plane_bytes = codec.table.dim / 2;
  struct Taker {
    Codes batch, all;
    uint32_t code_bytes, plane_bytes;
    uint64_t next = 0;
  } taker{
      .batch = {std::vector<uint16_t>(at_once), std::vector<uint16_t>(at_once),
                std::vector<uint8_t>(at_once), std::vector<uint8_t>(at_once),
                std::vector<uint8_t>(size_t{at_once} * code_bytes),
                std::vector<uint8_t>(size_t{at_once} * plane_bytes), std::vector<uint8_t>(at_once)},
      .all = {},
      .code_bytes = code_bytes,
      .plane_bytes = plane_bytes};
  Codes& batch = taker.batch;
  const weft_encode_args args{
      .struct_size = sizeof args,
      .n = rows.size() / codec.row_dim,
      .rows = rows.data(),
      .parents = batch.parents.data(),
      .steps = batch.steps.data(),
      .children = batch.children.data(),
      .multipliers = batch.multipliers.data(),
      .codes = batch.codes.data(),
      .plane = plane ? batch.plane.data() : nullptr,
      .plane_multipliers = batch.plane_multipliers.data(),
      .take = [](void* data, uint64_t first, uint64_t n) -> int32_t {
        Taker& to = *static_cast<Taker*>(data);
        CHECK(first == to.next);
        to.next += n;
        const auto add = [&](auto& all, auto& part, size_t width) {
          all.insert(all.end(), part.begin(), part.begin() + static_cast<ptrdiff_t>(n * width));
          std::fill(part.begin(), part.end(), typename std::decay_t<decltype(part)>::value_type{9});
        };
        add(to.all.parents, to.batch.parents, 1);
        add(to.all.steps, to.batch.steps, 1);
        add(to.all.children, to.batch.children, 1);
        add(to.all.multipliers, to.batch.multipliers, 1);
        add(to.all.codes, to.batch.codes, to.code_bytes);
        add(to.all.plane, to.batch.plane, to.plane_bytes);
        add(to.all.plane_multipliers, to.batch.plane_multipliers, 1);
        return 0;
      },
      .data = &taker};
  weft_error error{};
  CHECK(opened.backend.encode(opened.builder, &args, &error) == 0);
  CHECK(taker.next == args.n);
  return taker.all;
}

std::vector<uint16_t> halves(Random& random, size_t n) {
  std::vector<uint16_t> out(n);
  std::generate(out.begin(), out.end(), [&] {
    return weft::float_to_half(static_cast<float>(small(random, 100)) / 256.0f);
  });
  return out;
}

void compare_codes(const Codec& codec, const std::vector<uint16_t>& rows, uint32_t at_once,
                   bool plane) {
  const uint32_t dim = codec.table.dim, width = dim * codec.nbits / 8;
  const auto middle = static_cast<float>((1u << codec.nbits) - 1);
  for (int device = 0; device < kDevices; ++device) {
    const Codes found = encoded(codec, rows, device, at_once, plane);
    for (size_t i = 0; i < rows.size() / codec.row_dim; ++i) {
      std::vector<float> x = codec.rotated(rows.data() + i * codec.row_dim);
      const auto [cell, child] = codec.place(codec.bytes(x));
      CHECK(found.parents[i] == cell);
      CHECK(found.children[i] == child);
      const int8_t* centroid = codec.fine.data() + size_t{codec.child_offsets[cell] + child} * dim;
      for (uint32_t d = 0; d < dim; ++d) {
        x[d] -= static_cast<float>(centroid[d]) * codec.plain.fine_scale;
      }
      std::vector<uint8_t> levels(dim), merged(dim);
      float step = codec.step(x, levels);
      const uint16_t stored = weft::float_to_half(plane ? step * codec.plain.widening : step);
      CHECK(found.steps[i] == stored);
      step = weft::half_to_float(stored);
      for (uint32_t d = 0; d < dim; ++d) {
        if (plane) {
          const float per_step = 1.0f / step, fine_step = 1.0f / (step / 12.0f);
          levels[d] = static_cast<uint8_t>(std::clamp(x[d] * per_step + 8.0f, 0.0f, 15.5f));
          const float rest = x[d] - step * (static_cast<float>(levels[d]) - 7.5f);
          const auto lower = static_cast<uint8_t>(std::clamp(rest * fine_step + 8.0f, 0.0f, 15.5f));
          CHECK(Codec::unpacked(found.plane.data() + i * (dim / 2), 4, d) == lower);
          merged[d] = static_cast<uint8_t>(12 * levels[d] + lower);
        }
        CHECK(Codec::unpacked(found.codes.data() + i * width, codec.nbits, d) == levels[d]);
      }
      CHECK(found.multipliers[i] ==
            codec.multiplier(centroid, levels, step, middle, 0.75f, 1.0f / 512));
      CHECK(!plane ||
            found.plane_multipliers[i] ==
                codec.multiplier(centroid, merged, step / 12.0f, 195.0f, 0.984375f, 1.0f / 8192));
    }
  }
}

void test_codes() {
  Random random(3, 0);
  for (const uint32_t nbits : {1u, 2u, 4u, 8u}) {
    for (const uint32_t dim : {20u, 70u, 128u}) {
      const Codec codec(random, dim, nbits, 11, 20, 60);
      compare_codes(codec, halves(random, size_t{45} * dim), 20, nbits == 4);  // three batches
    }
  }
  compare_codes(Codec(random, 33, 4, 2, 256, 1), halves(random, size_t{40} * 33), 64, false);
  compare_codes(Codec(random, 4'097, 4, 5, 3, 20), halves(random, size_t{3} * 4'097), 2, true);
}

void test_equal_children() {
  Random random(6, 0);
  Codec codec(random, 40, 4, 6, 40, 60);
  for (size_t i = 0; i < codec.fine.size(); ++i) {
    codec.fine[i] = codec.fine[i % (size_t{3} * codec.table.dim)];
  }
  std::fill(codec.fine_bias.begin(), codec.fine_bias.end(), 0);
  compare_codes(codec, halves(random, size_t{50} * 40), 50, false);
}

void test_a_row_that_is_its_centroid() {
  Random random(4, 0);
  Codec codec(random, 32, 4, 1, 1, 1);
  std::fill(codec.fine.begin(), codec.fine.end(), int8_t{0});
  const Codes found = encoded(codec, std::vector<uint16_t>(32), 0, 1, true);
  CHECK(found.steps[0] == 0);
  CHECK(found.codes[0] == 0x77 || found.codes[0] == 0x88);
  CHECK(found.multipliers[0] == 128);  // 1, for the zero row
}

void test_errors() {
  Random random(5, 0);
  const Codec codec(random, 40, 4, 5, 4, 50);
  const weft_backend& backend = *weft_backend_v1();
  weft_error error{};
  weft_builder* builder = nullptr;
  CHECK(backend.open_builder(3, &codec.table.plain, &codec.plain, 9, &builder, &error) == 7);
  CHECK(backend.open_builder(0, &codec.table.plain, &codec.plain, 0, &builder, &error) == 1);
  weft_encoding wrong = codec.plain;
  wrong.nbits = 3;
  CHECK(backend.open_builder(0, &codec.table.plain, &wrong, 9, &builder, &error) == 1);
  CHECK(std::strstr(error.text, "3 bits") != nullptr);
  weft_nearest table = codec.table.plain;
  table.n_groups = 6;
  CHECK(backend.open_builder(0, &table, nullptr, 9, &builder, &error) == 1);

  const Opened opened(0, codec.table.plain, nullptr, 2);
  const auto rows = bytes_of(random, size_t{7} * 64, 100);
  std::vector<uint16_t> labels(7);
  int asked = 0;
  const weft_label_args args{
      .struct_size = sizeof args,
      .n = 7,
      .rows = rows.data(),
      .labels = labels.data(),
      .done = [](void* data, uint64_t) -> int32_t { return ++*static_cast<int*>(data) == 2; },
      .data = &asked};
  CHECK(backend.label(opened.builder, &args, &error) == 8);  // 1 + ErrorCode::cancelled
  CHECK(asked == 2);
  weft_encode_args none{};
  none.struct_size = sizeof none;
  CHECK(backend.encode(opened.builder, &none, &error) == 1);
}

}  // namespace

int main() {
  test_labels();
  test_extreme_values_do_not_overflow();
  test_codes();
  test_equal_children();
  test_a_row_that_is_its_centroid();
  test_errors();
  return CHECK_RESULT;
}
