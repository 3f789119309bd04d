// SPDX-License-Identifier: Apache-2.0
#include <exception>
#include <utility>

#include "base/checksum.h"
#include "base/half.h"
#include "bindings/arrays.h"
#include "kernels/dispatch.h"
#include "search/exact.h"

namespace weft::bindings {

void bind_kernels(py::module_& module);
void bind_codec(py::module_& module);
void bind_container(py::module_& module);
void bind_segment(py::module_& module);
void bind_search(py::module_& module);

namespace {

const char* code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::corrupt:
      return "corrupt";
    case ErrorCode::incompatible:
      return "incompatible";
    case ErrorCode::io:
      return "io";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
    case ErrorCode::device:
      return "device";
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::internal:
      break;
  }
  return "internal";
}

/// weft::Error becomes the class that weft.errors.for_code names; a pending signal wins, since
/// "cancelled" is how a polled Ctrl-C comes back.
// NOLINTNEXTLINE(performance-unnecessary-value-param): pybind11 gives the signature
void translate(std::exception_ptr pointer) {
  try {
    if (pointer) {
      std::rethrow_exception(pointer);
    }
  } catch (const Error& error) {
    if (PyErr_Occurred() != nullptr) {
      return;
    }
    py::object path = py::none(), number = py::none();
    if (!error.path().empty()) {
      path = py::str(error.path());
    }
    if (error.system_errno() != 0) {
      number = py::int_(error.system_errno());
    }
    const py::object exception =
        py::module_::import("weft.errors")
            .attr("for_code")(code_name(error.code()), error.what(), path, number);
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  }
}

py::dict info() {
  py::list isas;
  for (const kernels::Kernels* table : kernels::available()) {
    isas.append(table->name);
  }
  py::dict out;
  out["version"] = WEFT_VERSION;
  out["isa"] = kernels::active().name;
  out["isas"] = isas;
  out["format"] = 1;
  out["threads"] = default_threads();
  return out;
}

uint32_t crc(const py::buffer& data, uint32_t start) {
  const py::buffer_info bytes = data.request();
  const py::gil_scoped_release release;
  return crc32c(start, bytes.ptr, static_cast<size_t>(bytes.size * bytes.itemsize));
}

/// Rows as unit-length f16, the first bad row (or -1) and why: 1 = not finite, 2 = zero length.
py::tuple normalize_rows(const py::object& values, bool bfloat16) {
  if (!py::isinstance<py::array>(values)) {
    throw Error(ErrorCode::invalid_argument, "values: expected a numpy array");
  }
  const auto given = py::reinterpret_borrow<py::array>(values);
  const auto dtype = py::str(given.dtype()).cast<std::string>();
  const bool wide = dtype == "float32";
  const char* wanted = bfloat16 ? "uint16" : wide ? "float32" : "float16";
  const py::array array = require_array(values, "values", wanted, 2);
  const auto rows = static_cast<size_t>(array.shape(0));
  const auto dim = static_cast<size_t>(array.shape(1));
  py::array out(py::dtype("float16"), {array.shape(0), array.shape(1)});
  const void* in = array.data();
  auto* halves = static_cast<uint16_t*>(out.mutable_data());
  int64_t bad = -1;
  int reason = 0;
  {
    const py::gil_scoped_release release;
    const kernels::Kernels& kernel = kernels::active();
    std::vector<float> row(dim);
    for (size_t i = 0; i < rows && bad < 0; ++i) {
      const auto* narrow = static_cast<const uint16_t*>(in) + i * dim;
      if (wide) {
        std::copy_n(static_cast<const float*>(in) + i * dim, dim, row.data());
      } else if (bfloat16) {
        std::transform(narrow, narrow + dim, row.begin(), bfloat_to_float);
      } else {
        kernel.half_to_float(narrow, dim, row.data());
      }
      double sum = 0.0;
      for (const float value : row) {
        sum += double{value} * double{value};
      }
      if (!std::isfinite(sum) || sum == 0.0) {
        bad = static_cast<int64_t>(i);
        reason = std::isfinite(sum) ? 2 : 1;
        break;
      }
      const double scale = 1.0 / std::sqrt(sum);
      for (float& value : row) {
        value = static_cast<float>(value * scale);
      }
      kernel.float_to_half(row.data(), dim, halves + i * dim);
    }
  }
  return py::make_tuple(out, bad, reason);
}

py::array_t<float> maxsim_of(const py::object& query, const py::object& values,
                             const py::object& offsets, size_t threads) {
  const MatrixView<const float> rows = query_matrix(query);
  const auto bounds = vector<uint64_t>(offsets, "offsets", "uint64");
  ExactRows docs;
  const auto dtype = py::str(values.attr("dtype")).cast<std::string>();
  size_t cols = 0;
  if (dtype == "float16") {
    docs.f16 = make_ragged(matrix<uint16_t>(values, "values", "float16"), bounds);
    cols = docs.f16.tokens.cols;
  } else {
    docs.f32 = make_ragged(matrix<float>(values, "values", "float32"), bounds);
    cols = docs.f32.tokens.cols;
  }
  WEFT_REQUIRE(rows.rows >= 1, ErrorCode::invalid_argument,
               "query is empty: expected at least one token embedding");
  WEFT_REQUIRE(rows.cols == cols, ErrorCode::invalid_argument, "query has dim ", rows.cols,
               ", the documents have ", cols);
  std::vector<float> scores(bounds.size() - 1);
  {
    const py::gil_scoped_release release;
    maxsim(rows, docs, scores, threads, signal_poll());
  }
  return to_numpy(scores);
}

}  // namespace
}  // namespace weft::bindings

PYBIND11_MODULE(_native, module) {
  namespace py = pybind11;
  using namespace weft::bindings;
  module.doc() = "The engine of weft; private, see weft for the public API.";
  py::register_local_exception_translator(translate);
  module.def("info", &info);
  module.def("crc32c", &crc, py::arg("data"), py::arg("crc") = 0);
  module.def("normalize_rows", &normalize_rows, py::arg("values"), py::arg("bfloat16") = false);
  module.def("maxsim", &maxsim_of, py::arg("query"), py::arg("values"), py::arg("offsets"),
             py::arg("threads") = 0);
  bind_codec(module);
  bind_container(module);
  bind_segment(module);
  bind_search(module);
  bind_kernels(module);
}
