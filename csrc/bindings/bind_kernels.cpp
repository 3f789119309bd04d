// SPDX-License-Identifier: Apache-2.0
//
// weft._native._kernels: every kernel of every usable table, for tests and benchmarks alone. A
// function takes the table's name, C-contiguous arrays and `repeat`, the number of times the kernel
// runs on them, so that a benchmark need not pay for Python. Shapes are checked here, because
// kernels check nothing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/error.h"
#include "kernels/dispatch.h"
#include "quantizer/packing.h"

namespace weft::bindings {

namespace py = pybind11;

void bind_kernels(py::module_& module);

namespace {

using kernels::kLanes;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool condition, const char* what) {
  WEFT_REQUIRE(condition, weft::ErrorCode::invalid_argument, what);
}

const kernels::Kernels& table(std::string_view isa) {
  for (const kernels::Kernels* usable : kernels::available()) {
    if (isa == usable->name) return *usable;
  }
  throw weft::Error(weft::ErrorCode::invalid_argument,
                    weft::concat("isa=", isa, ": not usable on this CPU"));
}

template <class T>
size_t count(const Array<T>& array) {
  return static_cast<size_t>(array.size());
}

template <class T>
size_t extent(const Array<T>& array, py::ssize_t axis) {
  require(axis < array.ndim(), "array: too few dimensions");
  return static_cast<size_t>(array.shape(axis));
}

template <class T>
Array<T> filled(std::vector<size_t> shape, T value) {
  Array<T> out(std::vector<py::ssize_t>(shape.begin(), shape.end()));
  std::fill_n(out.mutable_data(), out.size(), value);
  return out;
}

template <class T>
Array<T> copied(const Array<T>& array) {
  Array<T> out(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
  std::copy_n(array.data(), array.size(), out.mutable_data());
  return out;
}

template <class Body>
void times(size_t repeat, const Body& body) {
  const py::gil_scoped_release release;
  for (size_t i = 0; i < repeat; ++i) body();
}

/// data: s8 [groups, dim / 4, 16, 4]; sums: s32 [groups * 16].
kernels::ByteTile byte_tile(const Array<int8_t>& data, const Array<int32_t>& sums) {
  require(
      data.ndim() == 4 && extent(data, 0) >= 1 && extent(data, 2) == kLanes && extent(data, 3) == 4,
      "tile: expected [groups, dim / 4, 16, 4]");
  const size_t groups = extent(data, 0);
  const size_t dim = 4 * extent(data, 1);
  require(dim > 0 && dim % 32 == 0 && dim <= 4128, "tile: dim is not a multiple of 32 up to 4128");
  require(count(sums) == groups * kLanes, "sums: expected one per lane");
  bool half = true;  // nothing but zeros in the last eight lanes
  for (size_t quad = 0; quad < dim / 4; ++quad) {
    const int8_t* lane = data.data() + ((groups - 1) * dim / 4 + quad) * kLanes * 4 + kLanes * 2;
    half = half && std::all_of(lane, lane + kLanes * 2, [](int8_t value) { return value == 0; });
  }
  return {data.data(), sums.data(), groups, dim, half};
}

Array<int32_t> tile_dots(std::string_view isa, const Array<int8_t>& data,
                         const Array<int32_t>& sums, const Array<int8_t>& rows, size_t repeat) {
  const auto tile = byte_tile(data, sums);
  const size_t n = extent(rows, 0);
  require(extent(rows, 1) == tile.dim, "rows: expected [n, dim]");
  auto dots = filled<int32_t>({n, tile.lanes()}, 0);
  int32_t* out = dots.mutable_data();
  const auto entry = table(isa).tile_dots;
  times(repeat, [&] { entry(tile, rows.data(), n, out); });
  return dots;
}

Array<int32_t> nearest(std::string_view isa, const Array<int8_t>& data, const Array<int32_t>& sums,
                       const Array<int8_t>& rows, const Array<int32_t>& bias, uint32_t first,
                       unsigned shift, const Array<int32_t>& keys, size_t repeat) {
  const auto tile = byte_tile(data, sums);
  const size_t n = extent(rows, 0);
  require(extent(rows, 1) == tile.dim && count(bias) == n && first + n <= 65536 && shift < 32 &&
              count(keys) == 4 * tile.lanes(),
          "nearest: shapes do not match");
  auto best = copied(keys);
  int32_t* out = best.mutable_data();
  const auto entry = table(isa).nearest;
  times(repeat, [&] { entry(tile, rows.data(), bias.data(), n, first, shift, out); });
  return best;
}

Array<int32_t> row_dots(std::string_view isa, const Array<int8_t>& x, const Array<int8_t>& rows,
                        size_t repeat) {
  const size_t n = extent(rows, 0);
  const size_t dim = extent(rows, 1);
  require(dim % 32 == 0 && dim <= 4128 && count(x) == dim, "row_dots: shapes do not match");
  auto dots = filled<int32_t>({n}, 0);
  int32_t* out = dots.mutable_data();
  const auto entry = table(isa).row_dots;
  times(repeat, [&] { entry(x.data(), rows.data(), n, dim, out); });
  return dots;
}

py::tuple quantize_dots(std::string_view isa, const Array<int32_t>& dots, unsigned shift,
                        int16_t factor, size_t repeat) {
  const size_t n = count(dots);
  require(n % kLanes == 0 && shift < 32 && factor >= 0, "quantize_dots: expected n % 16 == 0");
  auto base = filled<int16_t>({n}, 0);
  auto scores = filled<uint8_t>({n}, 0);
  int16_t* base_out = base.mutable_data();
  uint8_t* scores_out = scores.mutable_data();
  const auto entry = table(isa).quantize_dots;
  times(repeat, [&] { entry(dots.data(), n, shift, factor, base_out, scores_out); });
  return py::make_tuple(base, scores);
}

/// ranges: u32 [m, 2], first token and number of tokens of each document.
void check_ranges(const Array<uint32_t>& ranges, size_t n_tokens) {
  require(ranges.ndim() == 2 && extent(ranges, 1) == 2, "ranges: expected [m, 2]");
  for (size_t i = 0; i < extent(ranges, 0); ++i) {
    const uint32_t* range = ranges.data() + 2 * i;
    require(size_t{range[0]} + range[1] <= n_tokens, "ranges: past the last token");
  }
}

/// rows: u8 [n_rows + 255, lanes].
kernels::ScoreTable score_table(const Array<uint8_t>& rows, const Array<uint32_t>& cells,
                                const Array<uint16_t>& parents, const Array<uint8_t>& children,
                                const Array<uint32_t>& ranges) {
  require(extent(rows, 0) > 255 && extent(rows, 1) > 0 && extent(rows, 1) % kLanes == 0,
          "rows: expected [n_rows + 255, lanes]");
  require(count(cells) >= 1 && count(parents) == count(children), "table: shapes do not match");
  for (size_t i = 0; i < count(cells); ++i) {
    require((cells.data()[i] & 0x7fffffffu) + 255 < extent(rows, 0), "cells: past the last row");
  }
  check_ranges(ranges, count(parents));
  return {rows.data(), cells.data(), static_cast<uint32_t>(count(cells) - 1),
          extent(rows, 1) / kLanes};
}

/// The sum of each range and its largest entries, u8 [m, lanes].
py::tuple table_maxsim(std::string_view isa, const Array<uint8_t>& rows,
                       const Array<uint32_t>& cells, const Array<uint16_t>& parents,
                       const Array<uint8_t>& children, const Array<uint32_t>& ranges,
                       size_t repeat) {
  const auto scores = score_table(rows, cells, parents, children, ranges);
  const size_t m = extent(ranges, 0), lanes = extent(rows, 1);
  auto sums = filled<uint32_t>({m}, 0);
  auto best = filled<uint8_t>({m, lanes}, 0);
  uint32_t* out = sums.mutable_data();
  uint8_t* best_out = best.mutable_data();
  const uint32_t* range = ranges.data();
  const auto entry = table(isa).table_maxsim;
  times(repeat, [&] {
    for (size_t i = 0; i < m; ++i) {
      const size_t first = range[2 * i];
      out[i] = entry(scores, parents.data() + first, children.data() + first, range[2 * i + 1],
                     best_out + i * lanes);
    }
  });
  return py::make_tuple(sums, best);
}

/// least: u8 [lanes]. The leaders of each range, places within it: a list of u32 arrays.
py::list table_leaders(std::string_view isa, const Array<uint8_t>& rows,
                       const Array<uint32_t>& cells, const Array<uint16_t>& parents,
                       const Array<uint8_t>& children, const Array<uint32_t>& ranges,
                       const Array<uint8_t>& least, size_t repeat) {
  const auto scores = score_table(rows, cells, parents, children, ranges);
  require(count(least) == extent(rows, 1), "least: expected one bound per lane");
  std::vector<uint32_t> leaders(count(parents) + 1);
  const auto entry = table(isa).table_leaders;
  py::list out;
  for (size_t i = 0; i < extent(ranges, 0); ++i) {
    const size_t first = ranges.data()[2 * i], n = ranges.data()[2 * i + 1];
    size_t found = 0;
    times(repeat, [&] {
      found = entry(scores, parents.data() + first, children.data() + first, n, least.data(),
                    leaders.data());
    });
    out.append(Array<uint32_t>(static_cast<py::ssize_t>(found), leaders.data()));
  }
  return out;
}

/// docs: u8 [n * width + 4].
Array<uint32_t> accumulate(std::string_view isa, const Array<uint8_t>& docs, size_t n,
                           unsigned width, uint32_t limit, uint32_t gain, uint32_t stamp,
                           const Array<uint32_t>& words, size_t repeat) {
  require((width == 2 || width == 3) && count(docs) >= n * width + 4 && limit < count(words),
          "accumulate: shapes do not match");
  auto sums = copied(words);
  uint32_t* out = sums.mutable_data();
  const auto entry = table(isa).accumulate;
  times(repeat, [&] { entry(docs.data(), n, width, limit, gain, stamp, out); });
  return sums;
}

Array<uint32_t> histogram(std::string_view isa, const Array<uint32_t>& words, unsigned shift,
                          uint32_t n_bins, size_t repeat) {
  require(n_bins > 0 && shift < 32, "histogram: expected n_bins > 0");
  auto bins = filled<uint32_t>({n_bins}, 0);
  uint32_t* out = bins.mutable_data();
  const auto entry = table(isa).histogram;
  times(repeat, [&] { entry(words.data(), count(words), shift, n_bins, out); });
  return bins;
}

Array<uint32_t> collect(std::string_view isa, const Array<uint32_t>& words, uint32_t least,
                        size_t repeat) {
  require(least >= 1, "collect: expected least >= 1");
  std::vector<uint32_t> docs(count(words) + 16);
  size_t n = 0;
  const auto entry = table(isa).collect;
  times(repeat, [&] { n = entry(words.data(), count(words), least, docs.data()); });
  return Array<uint32_t>(static_cast<py::ssize_t>(n), docs.data());
}

/// Best scores f32 [m, lanes] of each range of tokens, -inf for an empty one. `tokens`: ascending places
/// within a range, the same for every range, or empty for all of it; scales go by place in that list. Also
/// every score, f32 [all tokens scored, lanes], if they are kept.
py::tuple score_codes(std::string_view isa, const Array<int8_t>& data, const Array<int32_t>& sums,
                      const Array<uint8_t>& codes, const Array<int16_t>& base,
                      const Array<uint32_t>& base_rows, const Array<float>& base_scale,
                      const Array<float>& code_scale, int32_t middle, unsigned nbits,
                      const Array<uint32_t>& ranges, const Array<uint32_t>& tokens, bool keep,
                      size_t repeat) {
  const auto tile = byte_tile(data, sums);
  const size_t n = count(base_rows);
  const size_t lanes = tile.lanes();
  require(nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8, "nbits: expected 1, 2, 4 or 8");
  const size_t width = tile.dim * nbits / 8, n_base = extent(base, 0);
  require(count(codes) == n * width && extent(base, 0) >= 1 && extent(base, 1) == lanes &&
              count(base_scale) == n && count(code_scale) == n,
          "score_codes: shapes do not match");
  check_ranges(ranges, n);
  const size_t m = extent(ranges, 0);
  const size_t n_listed = count(tokens);
  for (size_t i = 0; i < n_listed; ++i) {
    for (size_t j = 0; j < m; ++j) {
      require(tokens.data()[i] < ranges.data()[2 * j + 1],
              "tokens: past the last token of a range");
    }
  }
  auto best = filled<float>({m, lanes}, 0.0f);
  float* out = best.mutable_data();
  const uint32_t* range = ranges.data();
  size_t n_scores = 0;
  for (size_t i = 0; i < m; ++i) {
    const uint32_t* const rows = base_rows.data() + range[2 * i];
    const size_t n_scored = n_listed > 0 ? n_listed : range[2 * i + 1];
    require(std::all_of(rows, rows + n_scored, [&](uint32_t row) { return row < n_base; }),
            "base_rows: past the last row of base");
    n_scores += n_scored;
  }
  auto scores = filled<float>({keep ? n_scores : 0, lanes}, 0.0f);
  float* const first_score = scores.mutable_data();
  const auto entry = table(isa).score_codes;
  times(repeat, [&] {
    float* score = keep ? first_score : nullptr;
    for (size_t i = 0; i < m; ++i) {
      const size_t first = range[2 * i];
      const kernels::CodeBlock block{codes.data() + first * width,
                                     base.data(),
                                     base_rows.data() + first,
                                     base_scale.data() + first,
                                     code_scale.data() + first,
                                     middle,
                                     nbits,
                                     n_listed > 0 ? n_listed : range[2 * i + 1],
                                     n_listed > 0 ? tokens.data() : nullptr};
      std::fill_n(out + i * lanes, lanes, -std::numeric_limits<float>::infinity());
      entry(tile, block, out + i * lanes, score);
      score += keep ? block.n * lanes : 0;
    }
  });
  return py::make_tuple(best, scores);
}

/// Scores f32 [n] of all tokens; base: s16 [n_base, 16]. The row is laid out here.
Array<float> score_row(std::string_view isa, const Array<int8_t>& x, const Array<uint8_t>& codes,
                       const Array<int16_t>& base, const Array<uint32_t>& base_rows,
                       const Array<float>& base_scale, const Array<float>& code_scale,
                       int32_t middle, unsigned nbits, size_t repeat) {
  const size_t n = count(base_rows), dim = count(x), n_base = extent(base, 0);
  require(nbits == 1 || nbits == 2 || nbits == 4 || nbits == 8, "nbits: expected 1, 2, 4 or 8");
  require(dim % 32 == 0 && dim <= 4128 && count(codes) == n * dim * nbits / 8 &&
              extent(base, 1) == kLanes && count(base_scale) == n && count(code_scale) == n,
          "score_row: shapes do not match");
  require(std::all_of(base_rows.data(), base_rows.data() + n,
                      [&](uint32_t row) { return row < n_base; }),
          "base_rows: past the last row of base");
  weft::AlignedBuffer<int8_t> planes(weft::planes_size(dim, nbits));
  weft::code_row(x.data(), dim, nbits, planes.data());
  const kernels::CodeRow row{planes.data(), std::accumulate(x.data(), x.data() + dim, 0), dim};
  const kernels::CodeBlock block{
      codes.data(), base.data(), base_rows.data(), base_scale.data(), code_scale.data(), middle,
      nbits,        n,           nullptr};
  auto scores = filled<float>({n}, 0.0f);
  float* out = scores.mutable_data();
  const auto entry = table(isa).score_row;
  times(repeat, [&] { entry(row, block, out); });
  return scores;
}

/// data: f32 [groups, dim, 16]; rows: f32 [n, stride], of which the first dim columns count.
Array<float> maxsim_rows(std::string_view isa, const Array<float>& data, const Array<float>& rows,
                         size_t repeat) {
  require(
      data.ndim() == 3 && extent(data, 0) >= 1 && extent(data, 1) >= 1 && extent(data, 2) == kLanes,
      "tile: expected [groups, dim, 16]");
  const kernels::FloatTile tile{data.data(), extent(data, 0), extent(data, 1)};
  const size_t n = extent(rows, 0);
  const size_t stride = extent(rows, 1);
  require(stride >= tile.dim, "rows: expected [n, stride] with stride >= dim");
  auto best = filled<float>({tile.lanes()}, -std::numeric_limits<float>::infinity());
  float* out = best.mutable_data();
  const auto entry = table(isa).maxsim_rows;
  times(repeat, [&] { entry(tile, rows.data(), stride, n, out); });
  return best;
}

/// (levels u8 [n, dim], steps f32 [n])
py::tuple quantize_row(std::string_view isa, const Array<float>& rows, const Array<float>& factors,
                       int32_t middle, size_t repeat) {
  const size_t n = extent(rows, 0);
  const size_t dim = extent(rows, 1);
  require(dim % 32 == 0 && middle >= 1 && middle <= 255, "quantize_row: shapes do not match");
  auto levels = filled<uint8_t>({n, dim}, 0);
  auto steps = filled<float>({n}, 0.0f);
  uint8_t* levels_out = levels.mutable_data();
  float* steps_out = steps.mutable_data();
  const auto entry = table(isa).quantize_row;
  times(repeat, [&] {
    for (size_t i = 0; i < n; ++i) {
      steps_out[i] = entry(rows.data() + i * dim, dim, factors.data(), count(factors), middle,
                           levels_out + i * dim);
    }
  });
  return py::make_tuple(levels, steps);
}

Array<int8_t> to_int8(std::string_view isa, const Array<float>& row, float scale, size_t repeat) {
  const size_t dim = count(row);
  require(dim % 32 == 0, "to_int8: expected dim % 32 == 0");
  auto bytes = filled<int8_t>({dim}, 0);
  int8_t* out = bytes.mutable_data();
  const auto entry = table(isa).to_int8;
  times(repeat, [&] { entry(row.data(), dim, scale, out); });
  return bytes;
}

Array<float> half_to_float(std::string_view isa, const Array<uint16_t>& halves, size_t repeat) {
  auto floats = filled<float>({count(halves)}, 0.0f);
  float* out = floats.mutable_data();
  const auto entry = table(isa).half_to_float;
  times(repeat, [&] { entry(halves.data(), count(halves), out); });
  return floats;
}

Array<uint16_t> float_to_half(std::string_view isa, const Array<float>& floats, size_t repeat) {
  auto halves = filled<uint16_t>({count(floats)}, 0);
  uint16_t* out = halves.mutable_data();
  const auto entry = table(isa).float_to_half;
  times(repeat, [&] { entry(floats.data(), count(floats), out); });
  return halves;
}

}  // namespace

void bind_kernels(py::module_& module) {
  py::module_ m = module.def_submodule("_kernels", "Every kernel of every usable table. Private.");
  m.def("available", [] {
    py::list names;
    for (const kernels::Kernels* usable : kernels::available()) {
      names.append(usable->name);
    }
    return names;
  });
  m.def("active", [] { return std::string(kernels::active().name); });

  const auto a = [](const char* name) { return py::arg(name).noconvert(); };
  const auto isa = py::arg("isa");
  const auto repeat = py::arg("repeat") = 1;
  m.def("tile_dots", tile_dots, isa, a("tile"), a("sums"), a("rows"), repeat);
  m.def("nearest", nearest, isa, a("tile"), a("sums"), a("rows"), a("bias"), py::arg("first"),
        py::arg("shift"), a("keys"), repeat);
  m.def("row_dots", row_dots, isa, a("x"), a("rows"), repeat);
  m.def("quantize_dots", quantize_dots, isa, a("dots"), py::arg("shift"), py::arg("factor"),
        repeat);
  m.def("table_maxsim", table_maxsim, isa, a("rows"), a("cells"), a("parents"), a("children"),
        a("ranges"), repeat);
  m.def("table_leaders", table_leaders, isa, a("rows"), a("cells"), a("parents"), a("children"),
        a("ranges"), a("least"), repeat);
  m.def("accumulate", accumulate, isa, a("docs"), py::arg("n"), py::arg("width"), py::arg("limit"),
        py::arg("gain"), py::arg("stamp"), a("words"), repeat);
  m.def("histogram", histogram, isa, a("words"), py::arg("shift"), py::arg("n_bins"), repeat);
  m.def("collect", collect, isa, a("words"), py::arg("least"), repeat);
  m.def("score_codes", score_codes, isa, a("tile"), a("sums"), a("codes"), a("base"),
        a("base_rows"), a("base_scale"), a("code_scale"), py::arg("middle"), py::arg("nbits"),
        a("ranges"), a("tokens"), py::arg("keep") = true, repeat);
  m.def("score_row", score_row, isa, a("x"), a("codes"), a("base"), a("base_rows"), a("base_scale"),
        a("code_scale"), py::arg("middle"), py::arg("nbits"), repeat);
  m.def("maxsim_rows", maxsim_rows, isa, a("tile"), a("rows"), repeat);
  m.def("quantize_row", quantize_row, isa, a("rows"), a("factors"), py::arg("middle"), repeat);
  m.def("to_int8", to_int8, isa, a("row"), py::arg("scale"), repeat);
  m.def("half_to_float", half_to_float, isa, a("halves"), repeat);
  m.def("float_to_half", float_to_half, isa, a("floats"), repeat);
}

}  // namespace weft::bindings
