// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <memory>
#include <tuple>

#include "bindings/arrays.h"
#include "index/container.h"

namespace weft::bindings {

void bind_container(py::module_& module);

namespace {

constexpr const char* kNumpyNames[] = {"uint8",  "int8",  "uint16",  "int16",   "uint32", "int32",
                                       "uint64", "int64", "float16", "float32", "float64"};

const char* numpy_name(DType dtype) { return kNumpyNames[static_cast<size_t>(dtype)]; }

DType dtype_named(const std::string& name) {
  const auto found = std::ranges::find(kNumpyNames, name);
  WEFT_REQUIRE(found != std::end(kNumpyNames), ErrorCode::invalid_argument, "dtype ", name,
               ": no type of a .weft file");
  return static_cast<DType>(found - std::begin(kNumpyNames));
}

py::array copy_array(const NamedArray& array) {
  py::array values(py::dtype(numpy_name(array.dtype)),
                   std::vector<py::ssize_t>(array.shape.begin(), array.shape.end()));
  std::copy_n(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size(),
              static_cast<char*>(values.mutable_data()));
  return values;
}

/// The arrays of a .weft file whose checksums say that they are as they were written, copied.
py::dict whole_arrays(const std::string& path, const std::vector<std::string>& names) {
  const Container container = Container::open(path);
  py::dict out;
  for (size_t i = 0; i < container.arrays().size(); ++i) {
    const NamedArray& array = container.arrays()[i];
    if (std::ranges::find(names, array.name) == names.end() || !container.is_whole(i)) {
      continue;
    }
    out[array.name.c_str()] = copy_array(array);
  }
  return out;
}

/// Names of the arrays of a .weft file that are not as they were written.
std::vector<std::string> damaged_arrays(const std::string& path) {
  const py::gil_scoped_release release;
  const Container container = Container::open(path);
  std::vector<std::string> names;
  for (size_t i = 0; i < container.arrays().size(); ++i) {
    if (!container.is_whole(i)) {
      names.push_back(container.arrays()[i].name);
    }
  }
  return names;
}

/// Every array of a .weft file, copied, after its checksum was checked.
py::dict read_arrays(const std::string& path) {
  const Container container = Container::open(path);
  container.verify();
  py::dict out;
  for (const NamedArray& array : container.arrays()) {
    out[array.name.c_str()] = copy_array(array);
  }
  return out;
}

/// Every array of a .weft file, read-only and not copied: they share the mapped file, which stays
/// mapped as long as one of them is there. Payloads are not checked. And the file's checksum.
py::tuple map_arrays(const std::string& path) {
  auto container = std::make_unique<Container>(Container::open(path));
  const uint32_t checksum = container->checksum();
  const py::capsule owner(container.get(),
                          [](void* held) { delete static_cast<Container*>(held); });
  const Container& file = *container.release();  // the capsule has it now
  py::dict out;
  for (const NamedArray& array : file.arrays()) {
    py::array values(py::dtype(numpy_name(array.dtype)),
                     std::vector<py::ssize_t>(array.shape.begin(), array.shape.end()),
                     array.bytes.data(), owner);
    values.attr("flags").attr("writeable") = false;
    out[array.name.c_str()] = values;
  }
  return py::make_tuple(out, checksum);
}

/// `arrays`: (name, numpy's name of the type, shape) of each.
ContainerWriter make_writer(
    int fd, std::string path,
    const std::vector<std::tuple<std::string, std::string, std::vector<uint64_t>>>& arrays) {
  std::vector<ArraySpec> specs;
  for (const auto& [name, dtype, shape] : arrays) {
    specs.push_back({name, dtype_named(dtype), shape});
  }
  return {FileWriter(fd, std::move(path)), std::move(specs)};
}

void append(ContainerWriter& writer, size_t array, const py::array& values) {
  WEFT_REQUIRE((values.flags() & py::array::c_style) != 0, ErrorCode::invalid_argument,
               "values: expected a C-contiguous array");
  const void* data = values.data();
  const auto n_bytes = static_cast<size_t>(values.nbytes());
  const py::gil_scoped_release release;
  writer.append(array, data, n_bytes);
}

}  // namespace

void bind_container(py::module_& module) {
  module.def("read_arrays", &read_arrays, py::arg("path"));
  module.def("whole_arrays", &whole_arrays, py::arg("path"), py::arg("names"));
  module.def("damaged_arrays", &damaged_arrays, py::arg("path"));
  module.def("map_arrays", &map_arrays, py::arg("path"));
  py::class_<ContainerWriter>(module, "ContainerWriter")
      .def(py::init(&make_writer), py::arg("fd"), py::arg("path"), py::arg("arrays"))
      .def("append", &append, py::arg("array"), py::arg("values"))
      .def("finish", &ContainerWriter::finish);
}

}  // namespace weft::bindings
