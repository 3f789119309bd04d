// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include "bindings/arrays.h"
#include "search/exact.h"
#include "search/searcher.h"

namespace weft::bindings {

void bind_search(py::module_& module);

namespace {

using Bitmaps = std::optional<std::vector<py::object>>;

/// One bitmap (uint64 words) per segment, borrowed; no words where None stands for it.
std::vector<BitmapView> bitmaps_of(std::span<const std::shared_ptr<const Segment>> segments,
                                   const char* name, const Bitmaps& bitmaps) {
  std::vector<BitmapView> views;
  if (!bitmaps) {
    return views;
  }
  WEFT_REQUIRE(bitmaps->size() == segments.size(), ErrorCode::invalid_argument, name,
               ": expected one bitmap per segment (", segments.size(), "), found ",
               bitmaps->size());
  for (size_t s = 0; s < segments.size(); ++s) {
    BitmapView view{nullptr, segments[s]->doc_count()};
    if (!(*bitmaps)[s].is_none()) {
      const auto words = vector<uint64_t>((*bitmaps)[s], name, "uint64");
      WEFT_REQUIRE(words.size() == view.word_count(), ErrorCode::invalid_argument, name,
                   ": expected ", view.word_count(), " words for segment ", s, ", found ",
                   words.size());
      view.words = words.data();
    }
    views.push_back(view);
  }
  return views;
}

/// Found with what Python shows of it, copied out of the segments.
struct FoundRows {
  py::list ids;
  py::array_t<uint32_t> segments, docs;
  py::array_t<float> scores;
  uint64_t n_matching;
  py::dict timings_ms, counts;
  std::string path;
};

FoundRows to_python(const Searcher& searcher, const Found& found) {
  FoundRows out;
  std::vector<uint32_t> segments, docs;
  for (const DocRef ref : found.docs) {
    segments.push_back(ref.segment);
    docs.push_back(ref.doc);
    const std::string_view id = searcher.segments()[ref.segment]->id(ref.doc);
    out.ids.append(py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(id.data(), static_cast<Py_ssize_t>(id.size()), "replace")));
  }
  out.segments = to_numpy(segments);
  out.docs = to_numpy(docs);
  out.scores = to_numpy(found.scores);
  out.n_matching = found.n_matching;
  for (size_t stage = 0; stage < kStageCount; ++stage) {
    out.timings_ms[kStageNames[stage]] = found.milliseconds[stage];
  }
  out.counts["postings"] = found.n_postings;
  out.counts["candidates"] = found.n_candidates;
  out.counts["skimmed"] = found.n_skimmed;
  out.counts["refined"] = found.n_refined;
  out.counts["reranked"] = found.n_reranked;
  out.path = found.exhaustive ? "exhaustive" : "pruned";
  return out;
}

FoundRows search(const Searcher& searcher, const py::object& query, uint32_t k,
                 const SearchParams& params, const Bitmaps& bitmaps) {
  const auto rows = query_matrix(query);
  const auto allow = bitmaps_of(searcher.segments(), "allow", bitmaps);
  Found found;
  {
    const py::gil_scoped_release release;
    found = searcher.search(rows, k, params, allow, signal_poll());
  }
  return to_python(searcher, found);
}

std::vector<FoundRows> search_batch(const Searcher& searcher, const py::object& values,
                                    const py::object& offsets, uint32_t k,
                                    const SearchParams& params, const Bitmaps& bitmaps) {
  const auto queries = make_ragged(matrix<float>(values, "values", "float32"),
                                   vector<uint64_t>(offsets, "offsets", "uint64"));
  const auto allow = bitmaps_of(searcher.segments(), "allow", bitmaps);
  std::vector<Found> found;
  {
    const py::gil_scoped_release release;
    found = searcher.search_batch(queries, k, params, allow, signal_poll());
  }
  std::vector<FoundRows> out;
  out.reserve(found.size());
  for (const Found& one : found) {
    out.push_back(to_python(searcher, one));
  }
  return out;
}

py::array_t<float> score(const Searcher& searcher, const py::object& query, uint32_t segment,
                         const py::object& docs) {
  const auto rows = query_matrix(query);
  const auto numbers = vector<uint32_t>(docs, "docs", "uint32");
  std::vector<float> scores(numbers.size());
  {
    const py::gil_scoped_release release;
    searcher.score(rows, segment, numbers, scores);
  }
  return to_numpy(scores);
}

/// What the stages of a pruned search handed on: tests compare it with their definitions.
py::dict trace(const Searcher& searcher, const py::object& query, uint32_t k,
               const SearchParams& params, const Bitmaps& bitmaps) {
  Trace trace;
  searcher.search(query_matrix(query), k, params, bitmaps_of(searcher.segments(), "allow", bitmaps),
                  {}, &trace);
  const auto candidates = [](const std::vector<Candidate>& from) {
    py::list out;
    for (const Candidate& one : from) {
      out.append(py::make_tuple(one.ref.segment, one.ref.doc, one.value));
    }
    return out;
  };
  py::list merged, lists;
  for (const auto& token : trace.merged) {
    merged.append(py::make_tuple(token.lane, token.weight));
  }
  size_t next = 0;
  for (const size_t end : trace.list_ends) {
    py::list of_token;
    for (; next < end; ++next) {
      of_token.append(py::make_tuple(trace.lists[next].fine, trace.lists[next].gain));
    }
    lists.append(of_token);
  }
  py::dict out;
  out["merged"] = merged;
  out["lists"] = lists;
  out["gathered"] = candidates(trace.gathered);
  out["interacted"] = candidates(trace.interacted);
  py::list skimmed;
  for (const Ranker::Scored& one : trace.skimmed) {
    skimmed.append(py::make_tuple(one.ref.segment, one.ref.doc, one.score));
  }
  out["skimmed"] = skimmed;
  return out;
}

py::tuple align(const Searcher& searcher, const py::object& query, uint32_t segment, uint32_t doc) {
  const auto rows = query_matrix(query);
  std::vector<uint32_t> tokens(rows.rows);
  std::vector<float> similarities(rows.rows);
  {
    const py::gil_scoped_release release;
    searcher.align(rows, segment, doc, tokens, similarities);
  }
  return py::make_tuple(to_numpy(tokens), to_numpy(similarities));
}

void scan(Truth& truth, const py::object& rows, const py::object& offsets, uint64_t first_doc) {
  const auto docs = make_ragged(matrix<uint16_t>(rows, "rows", "float16"),
                                vector<uint64_t>(offsets, "offsets", "uint64"));
  const py::gil_scoped_release release;
  truth.scan(docs, first_doc, signal_poll());
}

py::tuple truth_result(const Truth& truth) {
  const auto n = static_cast<py::ssize_t>(truth.query_count());
  const auto k = static_cast<py::ssize_t>(truth.k());
  py::array_t<uint32_t> docs({n, k});
  py::array_t<float> scores({n, k});
  std::fill_n(docs.mutable_data(), docs.size(), std::numeric_limits<uint32_t>::max());
  std::fill_n(scores.mutable_data(), scores.size(), -std::numeric_limits<float>::infinity());
  for (py::ssize_t q = 0; q < n; ++q) {
    py::ssize_t rank = 0;
    for (const auto& [score, doc] : truth.result(static_cast<size_t>(q))) {
      docs.mutable_at(q, rank) = static_cast<uint32_t>(doc);
      scores.mutable_at(q, rank) = score;
      ++rank;
    }
  }
  return py::make_tuple(docs, scores);
}

/// Bytes of a GPU's memory, copied when `stream` has come so far.
py::array_t<uint8_t> fetch(uint64_t address, size_t n_bytes, uint64_t stream) {
  py::array_t<uint8_t> out(static_cast<py::ssize_t>(n_bytes));
  uint8_t* const to = out.mutable_data();
  const py::gil_scoped_release release;
  fetch_device_memory(to, address, n_bytes, stream);
  return out;
}

/// DLPack's structs before its version 1, as https://dmlc.github.io/dlpack/latest/c_api.html has them.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

/// (address, shape, strides in elements or None, code, bits) of what a capsule lends as long as it lives.
py::tuple dlpack_layout(const py::capsule& capsule) {
  if (capsule.name() == nullptr || std::string_view(capsule.name()) != "dltensor") {
    throw py::value_error("expected a DLPack capsule that was not used before");
  }
  const auto& tensor = *capsule.get_pointer<DLTensor>();  // the first member of a DLManagedTensor
  if (tensor.lanes != 1) {
    throw py::value_error("its values are vectors");
  }
  const std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  py::object strides = py::none();
  if (tensor.strides != nullptr) {
    strides = py::cast(std::vector<int64_t>(tensor.strides, tensor.strides + tensor.ndim));
  }
  return py::make_tuple(reinterpret_cast<uint64_t>(tensor.data) + tensor.byte_offset, shape,
                        strides, int{tensor.code}, int{tensor.bits});
}

py::dict devices() {
  BackendStatus status;
  {
    const py::gil_scoped_release release;
    status = backend_status();
  }
  py::list found;
  for (const DeviceInfo& one : status.devices) {
    py::dict row;
    row["device"] = one.device;
    row["name"] = one.name;
    row["compute_capability"] = concat(one.major, ".", one.minor);
    row["free_bytes"] = one.free_bytes;
    row["total_bytes"] = one.total_bytes;
    found.append(row);
  }
  py::dict out;
  out["state"] = status.state;
  out["message"] = status.message;
  out["library"] = status.library;
  out["toolkit"] = status.toolkit;
  out["devices"] = found;
  return out;
}

}  // namespace

void bind_search(py::module_& module) {
  module.def("devices", &devices);
  module.def("use_backend", &use_backend, py::arg("library"));
  module.def("fetch", &fetch, py::arg("address"), py::arg("n_bytes"), py::arg("stream"));
  module.def("dlpack_layout", &dlpack_layout, py::arg("capsule"));
  py::class_<SearchParams>(module, "SearchParams")
      .def(py::init([](uint32_t nprobe, uint32_t budget, uint32_t ncandidates, uint32_t nskim,
                       uint32_t nrefine, uint32_t nrerank, bool exhaustive, bool pruned,
                       float floor) {
             WEFT_REQUIRE(!exhaustive || !pruned, ErrorCode::invalid_argument,
                          "exhaustive and pruned exclude each other");
             const SearchPath path = exhaustive ? SearchPath::exhaustive
                                     : pruned   ? SearchPath::pruned
                                                : SearchPath::cheaper;
             return SearchParams{nprobe, budget, ncandidates, nskim, nrefine, nrerank, path, floor};
           }),
           py::kw_only(), py::arg("nprobe"), py::arg("budget"), py::arg("ncandidates"),
           py::arg("nskim"), py::arg("nrefine"), py::arg("nrerank"), py::arg("exhaustive") = false,
           py::arg("pruned") = false, py::arg("floor") = SearchParams{}.floor);

  py::class_<FoundRows>(module, "Found")
      .def_readonly("ids", &FoundRows::ids)
      .def_readonly("segments", &FoundRows::segments)
      .def_readonly("docs", &FoundRows::docs)
      .def_readonly("scores", &FoundRows::scores)
      .def_readonly("n_matching", &FoundRows::n_matching)
      .def_readonly("timings_ms", &FoundRows::timings_ms)
      .def_readonly("counts", &FoundRows::counts)
      .def_readonly("path", &FoundRows::path);

  py::class_<Searcher>(module, "Searcher")
      .def(py::init([](const std::vector<std::shared_ptr<Segment>>& segments,
                       const std::shared_ptr<Codec>& codec, size_t threads, const Bitmaps& deleted,
                       const std::string& device) {
             const std::vector<std::shared_ptr<const Segment>> shared(segments.begin(),
                                                                      segments.end());
             std::shared_ptr<const Resident> resident;
             {
               const py::gil_scoped_release release;
               resident = make_resident(device, shared, codec.get());
             }
             return std::make_unique<Searcher>(shared, codec, threads,
                                               bitmaps_of(shared, "deleted", deleted), resident);
           }),
           py::arg("segments"), py::arg("codec").none(true), py::arg("threads") = 0,
           py::arg("deleted") = py::none(), py::arg("device") = "cpu")
      .def_property_readonly("threads", &Searcher::threads)
      .def_property_readonly("device",
                             [](const Searcher& searcher) {
                               return searcher.resident() == nullptr
                                          ? std::string("cpu")
                                          : searcher.resident()->device();
                             })
      .def("search", &search, py::arg("query"), py::arg("k"), py::arg("params"),
           py::arg("allow") = py::none())
      .def("search_batch", &search_batch, py::arg("values"), py::arg("offsets"), py::arg("k"),
           py::arg("params"), py::arg("allow") = py::none())
      .def("score", &score, py::arg("query"), py::arg("segment"), py::arg("docs"))
      .def("_trace", &trace, py::arg("query"), py::arg("k"), py::arg("params"),
           py::arg("allow") = py::none())
      .def("align", &align, py::arg("query"), py::arg("segment"), py::arg("doc"));

  py::class_<Truth>(module, "Truth")
      .def(py::init(
               [](const py::object& values, const py::object& offsets, size_t k, size_t threads) {
                 return std::make_unique<Truth>(
                     make_ragged(matrix<float>(values, "values", "float32"),
                                 vector<uint64_t>(offsets, "offsets", "uint64")),
                     k, threads);
               }),
           py::arg("values"), py::arg("offsets"), py::arg("k"), py::arg("threads") = 0)
      .def("scan", &scan, py::arg("rows"), py::arg("offsets"), py::arg("first_doc"))
      .def("result", &truth_result);
}

}  // namespace weft::bindings
