// SPDX-License-Identifier: Apache-2.0
//
// Codec as Python builds and opens it. Codec._encode, Codec._decode and weft._native._quantizer are
// for tests and benchmarks alone.
#include <algorithm>
#include <memory>
#include <utility>

#include "base/parallel.h"
#include "bindings/arrays.h"
#include "kernels/dispatch.h"
#include "quantizer/codec.h"
#include "quantizer/packing.h"

namespace weft::bindings {

void bind_codec(py::module_& module);

namespace {

using CodecPointer = std::shared_ptr<const Codec>;

constexpr size_t kBlockTokens = 4'096;

/// Without a callable, progress still looks for Ctrl-C.
Progress cancellable(const py::object& callable) {
  if (!callable.is_none()) {
    return make_progress(callable);
  }
  return [](const char*, uint64_t, uint64_t) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
  };
}

CodecPointer train(const py::object& rows, unsigned nbits, uint32_t n_coarse, uint32_t n_fine,
                   unsigned iterations, uint64_t seed, uint64_t max_sample_bytes, size_t threads,
                   const py::object& progress, uint64_t n_tokens,
                   const std::shared_ptr<BuildDevice>& device) {
  const auto values = matrix<uint16_t>(rows, "rows", "float16");
  const Progress report = cancellable(progress);
  const py::gil_scoped_release release;
  return std::make_shared<const Codec>(Codec::train(values,
                                                    {.nbits = nbits,
                                                     .n_coarse = n_coarse,
                                                     .n_fine = n_fine,
                                                     .iterations = iterations,
                                                     .seed = seed,
                                                     .n_tokens = n_tokens,
                                                     .max_sample_bytes = max_sample_bytes,
                                                     .threads = threads,
                                                     .device = device.get()},
                                                    report));
}

CodecPointer grow(const Codec& codec, const py::object& rows, uint32_t n_more, unsigned iterations,
                  uint64_t n_tokens, uint64_t max_sample_bytes, size_t threads,
                  std::vector<uint32_t> used, const py::object& progress,
                  const std::shared_ptr<BuildDevice>& device) {
  const auto values = matrix<uint16_t>(rows, "rows", "float16");
  const Progress report = cancellable(progress);
  const py::gil_scoped_release release;
  return std::make_shared<const Codec>(codec.grow(values,
                                                  {.n_more = n_more,
                                                   .iterations = iterations,
                                                   .n_tokens = n_tokens,
                                                   .max_sample_bytes = max_sample_bytes,
                                                   .threads = threads,
                                                   .used = std::move(used),
                                                   .device = device.get()},
                                                  report));
}

double share_beyond(const Codec& codec, const py::object& rows, size_t threads) {
  const auto values = matrix<uint16_t>(rows, "rows", "float16");
  const py::gil_scoped_release release;
  return codec.share_beyond(values, threads);
}

uint32_t write(const Codec& codec, int fd, std::string path) {
  const py::gil_scoped_release release;
  return codec.write(FileWriter(fd, std::move(path)));
}

template <class T>
py::array table(const std::vector<T>& values, const char* dtype, size_t n) {
  const size_t width = n == 0 ? 0 : values.size() / n;
  py::array out(py::dtype(dtype), std::vector<py::ssize_t>{static_cast<py::ssize_t>(n),
                                                           static_cast<py::ssize_t>(width)});
  std::copy_n(values.data(), values.size(), static_cast<T*>(out.mutable_data()));
  return out;
}

/// Blocks encoded over `threads`, joined in order: arrays [n] and, for codes and plane, [n, bytes].
py::dict encode(const Codec& codec, const py::object& rows, bool plane, size_t threads,
                const std::shared_ptr<BuildDevice>& device) {
  const auto values = matrix<uint16_t>(rows, "rows", "float16");
  const size_t n = values.rows;
  std::vector<EncodedTokens> blocks;
  EncodedTokens all;
  {
    const py::gil_scoped_release release;
    if (device != nullptr) {
      device->encode(codec, values, plane,
                     [&](const EncodedTokens& batch) { blocks.push_back(batch); });
    } else {
      blocks.resize((n + kBlockTokens - 1) / kBlockTokens);
      parallel_for(blocks.size(), threads, [&](size_t begin, size_t end, size_t) {
        for (size_t i = begin; i < end; ++i) {
          const size_t first = i * kBlockTokens;
          codec.encode(values.slice(first, std::min(kBlockTokens, n - first)), plane, blocks[i]);
        }
      });
    }
    const auto join = [](auto& into, const auto& from) {
      into.insert(into.end(), from.begin(), from.end());
    };
    for (const EncodedTokens& block : blocks) {
      join(all.parents, block.parents);
      join(all.children, block.children);
      join(all.steps, block.steps);
      join(all.multipliers, block.multipliers);
      join(all.codes, block.codes);
      join(all.plane, block.plane);
      join(all.plane_multipliers, block.plane_multipliers);
    }
  }
  py::dict out;
  out["parents"] = to_numpy(all.parents);
  out["children"] = to_numpy(all.children);
  out["steps"] = table(all.steps, "float16", n).attr("reshape")(n);
  out["multipliers"] = to_numpy(all.multipliers);
  out["codes"] = table(all.codes, "uint8", n);
  if (plane) {
    out["plane"] = table(all.plane, "uint8", n);
    out["plane_multipliers"] = to_numpy(all.plane_multipliers);
  }
  return out;
}

/// What encode() gave, as f32 rows; the plane is used where there is one.
py::array_t<float> decode(const Codec& codec, const py::dict& encoded) {
  const auto parents = vector<uint16_t>(encoded["parents"], "parents", "uint16");
  EncodedView view{
      .n = parents.size(),
      .parents = parents.data(),
      .children = vector<uint8_t>(encoded["children"], "children", "uint8").data(),
      .steps = vector<uint16_t>(encoded["steps"], "steps", "float16").data(),
      .multipliers = vector<uint8_t>(encoded["multipliers"], "multipliers", "uint8").data(),
      .codes = matrix<uint8_t>(encoded["codes"], "codes", "uint8").data};
  if (encoded.contains("plane")) {
    view.plane = matrix<uint8_t>(encoded["plane"], "plane", "uint8").data;
    view.plane_multipliers =
        vector<uint8_t>(encoded["plane_multipliers"], "plane_multipliers", "uint8").data();
  }
  py::array_t<float> out({view.n, codec.dim()});
  float* const values = out.mutable_data();
  const py::gil_scoped_release release;
  codec.decode(view, values);
  return out;
}

py::array_t<float> rotate(const py::object& rows, uint64_t seed) {
  const auto values = matrix<float>(rows, "rows", "float32");
  const Rotation rotation(values.cols, seed);
  py::array_t<float> out({values.rows, rotation.padded_dim()});
  for (size_t i = 0; i < values.rows; ++i) {
    rotation.apply(values.row(i), out.mutable_data() + i * rotation.padded_dim());
  }
  return out;
}

py::array_t<float> unrotate(const py::object& rotated, size_t dim, uint64_t seed) {
  const auto values = matrix<float>(rotated, "rotated", "float32");
  const Rotation rotation(dim, seed);
  WEFT_REQUIRE(values.cols == rotation.padded_dim(), ErrorCode::invalid_argument,
               "rotated: found dim ", values.cols, ", expected ", rotation.padded_dim());
  py::array_t<float> out({values.rows, dim});
  for (size_t i = 0; i < values.rows; ++i) {
    rotation.invert(values.row(i), out.mutable_data() + i * dim);
  }
  return out;
}

py::array_t<uint8_t> packed(const py::object& levels, unsigned nbits) {
  const auto values = matrix<uint8_t>(levels, "levels", "uint8");
  const size_t bytes = values.cols * nbits / 8;
  py::array_t<uint8_t> out({values.rows, bytes});
  for (size_t i = 0; i < values.rows; ++i) {
    pack(values.row(i), values.cols, nbits, out.mutable_data() + i * bytes);
  }
  return out;
}

py::array_t<uint8_t> unpacked(const py::object& codes, unsigned nbits) {
  const auto values = matrix<uint8_t>(codes, "codes", "uint8");
  const size_t dim = values.cols * 8 / nbits;
  py::array_t<uint8_t> out({values.rows, dim});
  for (size_t i = 0; i < values.rows; ++i) {
    unpack(values.row(i), dim, nbits, out.mutable_data() + i * dim);
  }
  return out;
}

py::array_t<uint8_t> merged(const py::object& upper, const py::object& lower) {
  const auto values = matrix<uint8_t>(upper, "upper", "uint8");
  const auto others = matrix<uint8_t>(lower, "lower", "uint8");
  const size_t dim = 2 * values.cols;
  py::array_t<uint8_t> out({values.rows, dim});
  for (size_t i = 0; i < values.rows; ++i) {
    merge_planes(values.row(i), others.row(i), dim, out.mutable_data() + i * dim);
  }
  return out;
}

/// rows: s8 [n, dim], dim a multiple of 32. Returns the centroids, s8 [n_clusters, dim].
py::array_t<int8_t> run_kmeans(const py::object& rows, size_t n_clusters, unsigned iterations,
                               uint64_t seed, size_t threads) {
  const auto values = matrix<int8_t>(rows, "rows", "int8");
  AlignedBuffer<int8_t> copy(values.rows * values.cols);
  std::copy_n(values.data, copy.size(), copy.data());
  const AlignedBuffer<int8_t> centroids = kmeans(
      kernels::active(), {copy.data(), values.rows, values.cols},
      {.n_clusters = n_clusters, .iterations = iterations, .seed = seed, .threads = threads});
  py::array_t<int8_t> out({n_clusters, values.cols});
  std::copy_n(centroids.data(), centroids.size(), out.mutable_data());
  return out;
}

/// rows, centroids: s8, dim a multiple of 32. Returns the four nearest of each row, u32 [n, 4].
py::array_t<uint32_t> nearest(const py::object& rows, const py::object& centroids) {
  const auto values = matrix<int8_t>(rows, "rows", "int8");
  const auto others = matrix<int8_t>(centroids, "centroids", "int8");
  AlignedBuffer<int8_t> copy(values.rows * values.cols);
  std::copy_n(values.data, copy.size(), copy.data());
  const NearestCentroids index(kernels::active(), {others.data, others.rows, others.cols});
  py::array_t<uint32_t> out({values.rows, size_t{4}});
  std::vector<BestFour> best(values.rows);
  index.find({copy.data(), values.rows, values.cols}, best.data());
  std::copy_n(best.data()->data(), 4 * best.size(), out.mutable_data());
  return out;
}

}  // namespace

void bind_codec(py::module_& module) {
  // pybind11 has no holder of const objects; BuildDevice offers const members only.
  py::class_<BuildDevice, std::shared_ptr<BuildDevice>>(module, "BuildDevice")
      .def_property_readonly("name", &BuildDevice::name);
  module.def(
      "build_device",
      [](const std::string& device) {
        const py::gil_scoped_release release;
        return std::const_pointer_cast<BuildDevice>(make_build_device(device));
      },
      py::arg("device"));
  py::class_<Codec, std::shared_ptr<Codec>>(module, "Codec")
      .def_static("train", &train, py::arg("rows"), py::kw_only(), py::arg("nbits"),
                  py::arg("n_coarse"), py::arg("n_fine"), py::arg("iterations"), py::arg("seed"),
                  py::arg("max_sample_bytes"), py::arg("threads"), py::arg("progress"),
                  py::arg("n_tokens") = 0, py::arg("device") = py::none())
      .def_static("open", &Codec::open, py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("grow", &grow, py::arg("rows"), py::kw_only(), py::arg("n_more"), py::arg("iterations"),
           py::arg("n_tokens"), py::arg("max_sample_bytes"), py::arg("threads"), py::arg("used"),
           py::arg("progress"), py::arg("device") = py::none())
      .def("share_beyond", &share_beyond, py::arg("rows"), py::arg("threads"))
      .def("write", &write, py::arg("fd"), py::arg("path"))
      .def_property_readonly("dim", &Codec::dim)
      .def_property_readonly("padded_dim", &Codec::padded_dim)
      .def_property_readonly("nbits", &Codec::nbits)
      .def_property_readonly("n_coarse", &Codec::n_coarse)
      .def_property_readonly("n_fine", &Codec::n_fine)
      .def_property_readonly("n_tokens", &Codec::n_tokens)
      .def_property_readonly("seed", &Codec::seed)
      .def_property_readonly("error", &Codec::error)
      .def_property_readonly("checksum", &Codec::checksum)
      .def_property_readonly("nbytes", &Codec::byte_size)
      .def("_encode", &encode, py::arg("rows"), py::arg("plane") = false, py::arg("threads") = 0,
           py::arg("device") = py::none())
      .def("_decode", &decode, py::arg("encoded"));

  py::module_ quantizer = module.def_submodule("_quantizer");
  quantizer.def("rotate", &rotate, py::arg("rows"), py::arg("seed"));
  quantizer.def("unrotate", &unrotate, py::arg("rotated"), py::arg("dim"), py::arg("seed"));
  quantizer.def("pack", &packed, py::arg("levels"), py::arg("nbits"));
  quantizer.def("unpack", &unpacked, py::arg("codes"), py::arg("nbits"));
  quantizer.def("merge_planes", &merged, py::arg("upper"), py::arg("lower"));
  quantizer.def("nearest", &nearest, py::arg("rows"), py::arg("centroids"));
  quantizer.def("kmeans", &run_kmeans, py::arg("rows"), py::arg("n_clusters"),
                py::arg("iterations"), py::arg("seed"), py::arg("threads"));
}

}  // namespace weft::bindings
