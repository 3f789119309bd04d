// SPDX-License-Identifier: Apache-2.0
//
// numpy arrays <-> views. The Python layer hands over C-contiguous arrays of exact dtypes, so these
// checks only guard against our own mistakes; their messages are short.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "base/views.h"

namespace weft::bindings {

namespace py = pybind11;

/// f16 arrives as numpy's float16, which C++ reads as its bits.
template <class T>
py::dtype dtype_of() {
  return py::dtype::of<T>();
}

/// A C-contiguous array of exactly this dtype ("float16" has no C++ type, hence names).
inline py::array require_array(const py::object& value, const char* name, const char* dtype,
                               py::ssize_t ndim) {
  if (!py::isinstance<py::array>(value)) {
    throw Error(ErrorCode::invalid_argument, concat(name, ": expected a numpy array"));
  }
  auto array = py::reinterpret_borrow<py::array>(value);
  const bool same = py::str(array.dtype()).cast<std::string>() == dtype;
  const bool contiguous = (array.flags() & py::array::c_style) != 0;
  if (!same || !contiguous || array.ndim() != ndim) {
    throw Error(
        ErrorCode::invalid_argument,
        concat(name, ": expected a C-contiguous ", ndim, "-dimensional ", dtype, " array, found ",
               array.ndim(), "-dimensional ", py::str(array.dtype()).cast<std::string>()));
  }
  return array;
}

template <class T>
MatrixView<const T> matrix(const py::object& value, const char* name, const char* dtype) {
  const py::array array = require_array(value, name, dtype, 2);
  const auto rows = static_cast<size_t>(array.shape(0));
  const auto cols = static_cast<size_t>(array.shape(1));
  return {static_cast<const T*>(array.data()), rows, cols, cols};
}

template <class T>
std::span<const T> vector(const py::object& value, const char* name, const char* dtype) {
  const py::array array = require_array(value, name, dtype, 1);
  return {static_cast<const T*>(array.data()), static_cast<size_t>(array.shape(0))};
}

inline MatrixView<const float> query_matrix(const py::object& value) {
  return matrix<float>(value, "query", "float32");
}

/// A numpy array that owns a copy of these values.
template <class T>
py::array_t<T> to_numpy(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

/// Python's progress callable for C++ threads that hold no GIL; also looks for Ctrl-C. Empty for None.
inline Progress make_progress(const py::object& callable) {
  if (callable.is_none()) {
    return {};
  }
  return [callable](const char* stage, uint64_t done, uint64_t total) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    callable(stage, done, total);
  };
}

/// True when a signal (Ctrl-C) is pending; the translator raises it again.
inline std::function<bool()> signal_poll() {
  return [] {
    const py::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
  };
}

}  // namespace weft::bindings
