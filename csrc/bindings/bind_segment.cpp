// SPDX-License-Identifier: Apache-2.0
#include "bindings/arrays.h"
#include "index/segment.h"
#include "index/segment_builder.h"
#include "index/tombstones.h"

namespace weft::bindings {

void bind_segment(py::module_& module);

namespace {

py::dict to_python(const SegmentStats& stats) {
  py::dict out;
  out["checksum"] = stats.checksum;
  out["n_docs"] = stats.n_docs;
  out["n_tokens"] = stats.n_tokens;
  out["n_postings"] = stats.n_postings;
  out["bytes"] = stats.n_bytes;
  return out;
}

py::dict write(int fd, std::string path, std::shared_ptr<Codec> codec, const py::object& rows,
               const py::object& offsets, const py::object& id_bytes, const py::object& id_offsets,
               const std::string& rerank, size_t threads, const py::object& progress,
               const std::shared_ptr<BuildDevice>& device) {
  const auto docs = make_ragged(matrix<uint16_t>(rows, "rows", "float16"),
                                vector<uint64_t>(offsets, "offsets", "uint64"));
  const IdTable ids{vector<uint8_t>(id_bytes, "id_bytes", "uint8"),
                    vector<uint64_t>(id_offsets, "id_offsets", "uint64")};
  const Progress report = make_progress(progress);
  SegmentStats stats;
  {
    const py::gil_scoped_release release;
    stats = write_segment(FileWriter(fd, std::move(path)), std::move(codec), docs, ids,
                          parse_rerank(rerank), threads, report, device.get());
  }
  return to_python(stats);
}

/// `parts`: (segment, uint32 [n_runs, 2]) for each segment.
py::dict merge(int fd, std::string path,
               const std::vector<std::pair<std::shared_ptr<Segment>, py::object>>& parts,
               const py::object& progress) {
  std::vector<SegmentPart> views;
  for (const auto& [segment, runs] : parts) {
    const auto table = matrix<uint32_t>(runs, "runs", "uint32");
    WEFT_REQUIRE(table.cols == 2, ErrorCode::invalid_argument, "runs: expected two columns");
    views.push_back(
        {segment, {reinterpret_cast<const std::array<uint32_t, 2>*>(table.data), table.rows}});
  }
  const Progress report = make_progress(progress);
  SegmentStats stats;
  {
    const py::gil_scoped_release release;
    stats = merge_segments(FileWriter(fd, std::move(path)), views, report);
  }
  return to_python(stats);
}

void require_doc(const Segment& segment, uint32_t doc) {
  WEFT_REQUIRE(doc < segment.doc_count(), ErrorCode::invalid_argument, "document ", doc,
               ": the segment has ", segment.doc_count());
}

py::list ids(const Segment& segment, const py::object& docs) {
  py::list out;
  for (const uint32_t doc : vector<uint32_t>(docs, "docs", "uint32")) {
    require_doc(segment, doc);
    const std::string_view id = segment.id(doc);
    out.append(py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(id.data(), static_cast<Py_ssize_t>(id.size()), "replace")));
  }
  return out;
}

py::array_t<uint32_t> lengths(const Segment& segment) {
  std::vector<uint32_t> out(segment.doc_count());
  for (uint32_t doc = 0; doc < segment.doc_count(); ++doc) {
    out[doc] = static_cast<uint32_t>(segment.length(doc));
  }
  return to_numpy(out);
}

uint32_t write_deleted(int fd, std::string path, const py::object& words, uint64_t n_docs) {
  return write_tombstones(FileWriter(fd, std::move(path)),
                          vector<uint64_t>(words, "words", "uint64"), n_docs);
}

py::tuple read_deleted(const std::string& path) {
  const Tombstones found = read_tombstones(path);
  return py::make_tuple(to_numpy(found.words), found.n_docs, found.checksum);
}

}  // namespace

void bind_segment(py::module_& module) {
  module.def("write_segment", &write, py::arg("fd"), py::arg("path"), py::arg("codec").none(true),
             py::arg("rows"), py::arg("offsets"), py::arg("id_bytes"), py::arg("id_offsets"),
             py::arg("rerank"), py::arg("threads") = 0, py::arg("progress") = py::none(),
             py::arg("device") = py::none());
  module.def("merge_segments", &merge, py::arg("fd"), py::arg("path"), py::arg("parts"),
             py::arg("progress") = py::none());
  module.def("write_tombstones", &write_deleted, py::arg("fd"), py::arg("path"), py::arg("words"),
             py::arg("n_docs"));
  module.def("read_tombstones", &read_deleted, py::arg("path"));
  // pybind11 has no holder of const objects; Segment offers const members only.
  py::class_<Segment, std::shared_ptr<Segment>>(module, "Segment")
      .def_static(
          "open",
          [](const std::string& path, const std::shared_ptr<Codec>& codec) {
            const py::gil_scoped_release release;
            return std::const_pointer_cast<Segment>(Segment::open(path, codec));
          },
          py::arg("path"), py::arg("codec").none(true))
      .def_property_readonly("n_docs", &Segment::doc_count)
      .def_property_readonly("n_tokens", &Segment::token_count)
      .def_property_readonly("checksum", &Segment::checksum)
      .def_property_readonly("codec_checksum", &Segment::codec_checksum)
      .def_property_readonly("has_codes", &Segment::has_codes)
      .def_property_readonly(
          "rerank",
          [](const Segment& segment) { return std::string(rerank_name(segment.rerank())); })
      .def("ids", &ids, py::arg("docs"))
      .def(
          "find",
          [](const Segment& segment, const std::string& id) {
            const auto doc = segment.find(id);
            return doc ? static_cast<int64_t>(*doc) : int64_t{-1};
          },
          py::arg("id"))
      .def("lengths", &lengths)
      .def(
          "rows",
          [](const Segment& segment, uint32_t doc) {
            require_doc(segment, doc);
            const auto n = static_cast<py::ssize_t>(segment.length(doc));
            py::array_t<float> out({n, static_cast<py::ssize_t>(segment.dim())});
            segment.read_rows(doc, out.mutable_data());
            return out;
          },
          py::arg("doc"))
      .def("verify", &Segment::verify, py::call_guard<py::gil_scoped_release>());
}

}  // namespace weft::bindings
