// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's host code, the same over every runtime: residents, passes of queries, rounds of
// selection, and errors on their way out.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "cuda/resident.h"

namespace weft::cuda {

namespace {

constexpr size_t kTokensUploaded = 1 << 20;  // centroid numbers made at a time
constexpr size_t kScoreBytes = size_t{256}
                               << 20;  // queries whose scores take more go one after another
constexpr size_t kMostQueries = 64;

/// Numbers of a collection's documents and tokens, and what they take on a device.
struct Extent {
  uint64_t n_docs = 0;  ///< each segment's rounded up
  uint64_t n_tokens = 0;
  size_t codes, centroids, fines, steps, multipliers, offsets, ranks, pruning;  ///< bytes

  Extent(const weft_codec& codec, const weft_segment* segments, uint32_t n_segments) {
    const bool known_bits = codec.nbits <= 8 && std::has_single_bit(codec.nbits);
    WEFT_REQUIRE(known_bits && codec.dim % 32 == 0 && codec.dim > 0, ErrorCode::invalid_argument,
                 "codec: ", codec.nbits, " bits in ", codec.dim,
                 " dims, expected 1, 2, 4 or 8 and a multiple of 32");
    for (uint32_t i = 0; i < n_segments; ++i) {
      n_docs += (uint64_t{segments[i].n_docs} + kDocsAligned - 1) / kDocsAligned * kDocsAligned;
      n_tokens += segments[i].n_tokens;
    }
    WEFT_REQUIRE(n_docs <= UINT32_MAX, ErrorCode::out_of_memory, "documents: ", n_docs,
                 ", expected less than 2^32 on one device");
    codes = checked_mul(n_tokens, codec.dim / 8 * codec.nbits);
    centroids = checked_mul(size_t{codec.n_fine} + 1, codec.dim);
    fines = n_tokens * sizeof(uint32_t);
    steps = n_tokens * sizeof(uint16_t);
    multipliers = n_tokens;
    offsets = (n_docs + 1) * sizeof(uint64_t);
    ranks = n_docs * sizeof(uint32_t);
    pruning = PrunedSearch::bytes(codec, segments, n_segments);
  }

  size_t bytes() const {
    return codes + centroids + fines + steps + multipliers + offsets + ranks + pruning;
  }
};

}  // namespace

float score_of(uint64_t key) {
  const auto rising = ~static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(rising >> 31 != 0 ? rising & 0x7fffffffu : ~rising);
}

QueryPass make_pass(const weft_query& query, uint32_t dim, uint32_t begin,
                    std::vector<Words<4>>& rows) {
  const size_t words = size_t{dim} / 32 * kTiles * kWarp;
  QueryPass pass{.rows = nullptr,
                 .scores = nullptr,
                 .base_unit = query.base_unit,
                 .code_unit = query.code_unit,
                 .shift = query.base_shift,
                 .n_tokens = std::min(kPassRows, query.n_tokens - begin),
                 .resumes = begin > 0 ? 1u : 0u,
                 .sums = {}};
  rows.resize(rows.size() + words);
  Words<4>* const out = rows.data() + rows.size() - words;
  for (uint32_t row = 0; row < pass.n_tokens; ++row) {
    const int8_t* const in = query.rows + size_t{begin + row} * dim;
    for (uint32_t d = 0; d < dim; d += 4) {
      const uint32_t place = d / (dim / 4), depth = d % (dim / 4);
      const size_t at = (depth / 8 * kTiles + row / 16) * kWarp + row % 8 * 4 + place;
      std::memcpy(&out[at].at[row / 8 % 2 + 2 * (depth / 4 % 2)], in + d, 4);
    }
    for (uint32_t d = 0; d < dim; ++d) {
      pass.sums[row] += in[d];
    }
  }
  return pass;
}

void select_keys(Workspace& work, SelectLaunch round, std::vector<uint64_t>& keys) {
  const uint32_t n = round.n_queries, k = round.first.k;
  keys.resize(size_t{n} * k);
  for (unsigned turn = 0;; turn ^= 1) {
    const uint32_t n_slices = round.slice_count();
    round.first.width = std::min(kSlice, std::bit_ceil(round.first.n));
    round.kept_stride = uint64_t{n_slices} * k;
    round.first.kept = grow<uint64_t>(work.queue, work.kept[turn], n * round.kept_stride);
    work.queue.select(round);
    if (n_slices == 1) {
      work.queue.download(keys.data(), round.first.kept, keys.size() * sizeof keys[0]);
      return;
    }
    round.first.scores = nullptr;
    round.first.keys = round.first.kept;
    round.first.n = n_slices * k;
    round.keys_stride = round.kept_stride;
  }
}
}  // namespace weft::cuda

/// Codes of a list of segments on one device.
struct weft_resident {
  using Workspace = weft::cuda::Workspace;

  weft_resident(int device_number, const weft_codec& codec, const weft_segment* segments,
                uint32_t n_segments);

  void scan(const weft_scan_args& args) const;
  void search(const weft_search_args& args) const;
  /// False in a child of the process that loaded it, where the device must not be touched.
  bool is_ours() const { return getpid() == process; }

 private:
  /// Lends a workspace, which holds the bits of `allow`, to use(workspace).
  template <class Use>
  void with_workspace(const uint64_t* allow, const Use& use) const;
  void scan_some(Workspace& work, const weft_scan_args& args, uint32_t first, uint32_t n) const;
  void score(Workspace& work, const weft_scan_args& args, uint32_t first, uint32_t n,
             float* scores) const;
  void select(Workspace& work, uint32_t n, uint32_t k, float* scores,
              std::vector<uint64_t>& keys) const;

  int device;
  pid_t process = getpid();
  weft::cuda::Extent extent;
  unsigned nbits;
  mutable weft::cuda::Queue queue;  ///< of the memories below
  weft::cuda::Memory codes, centroids, fines, steps, multipliers, offsets, ranks;
  weft::cuda::Collection all;
  std::vector<uint32_t> host_ranks, docs_by_rank;
  std::unique_ptr<weft::cuda::PrunedSearch> pruned;

  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Workspace>> idle;
};

using namespace weft;        // NOLINT(google-build-using-namespace): a struct of the C ABI
using namespace weft::cuda;  // NOLINT(google-build-using-namespace)

weft_resident::weft_resident(int device_number, const weft_codec& codec,
                             const weft_segment* segments, uint32_t n_segments)
    : device(device_number),
      extent(codec, segments, n_segments),
      nbits(codec.nbits),
      queue(device_number),
      codes(queue, extent.codes),
      centroids(queue, extent.centroids),
      fines(queue, extent.fines),
      steps(queue, extent.steps),
      multipliers(queue, extent.multipliers),
      offsets(queue, extent.offsets),
      ranks(queue, extent.ranks),
      all{.codes = codes.as<uint8_t>(),
          .centroids = centroids.as<int8_t>(),
          .fines = fines.as<uint32_t>(),
          .steps = steps.as<uint16_t>(),
          .multipliers = multipliers.as<uint8_t>(),
          .offsets = offsets.as<uint64_t>(),
          .ranks = ranks.as<uint32_t>(),
          .n_docs = static_cast<uint32_t>(extent.n_docs),
          .n_fine = codec.n_fine,
          .dim = codec.dim,
          .least = codec.multiplier_least,
          .grid = codec.multiplier_step},
      host_ranks(extent.n_docs) {
  const size_t centroid_bytes = size_t{codec.n_fine} * codec.dim;
  centroids.upload(0, codec.fine, centroid_bytes);
  const std::vector<int8_t> zeros(codec.dim);
  centroids.upload(centroid_bytes, zeros.data(), codec.dim);

  std::vector<uint64_t> bounds;
  std::vector<uint32_t> numbers;
  const size_t code_bytes = size_t{codec.dim} / 8 * codec.nbits;
  uint64_t token = 0;
  bounds.reserve(extent.n_docs + 1);
  for (const weft_segment* s = segments; s < segments + n_segments; ++s) {
    codes.upload(token * code_bytes, s->codes, s->n_tokens * code_bytes);
    steps.upload(token * sizeof(uint16_t), s->steps, s->n_tokens * sizeof(uint16_t));
    multipliers.upload(token, s->multipliers, s->n_tokens);
    for (uint64_t done = 0; done < s->n_tokens; done += numbers.size()) {
      numbers.resize(std::min<size_t>(kTokensUploaded, s->n_tokens - done));
      for (size_t i = 0; i < numbers.size(); ++i) {
        const uint32_t parent = std::min<uint32_t>(s->parents[done + i], codec.n_coarse);
        numbers[i] = std::min(codec.child_offsets[parent] + s->children[done + i], codec.n_fine);
      }
      fines.upload((token + done) * sizeof(uint32_t), numbers.data(),
                   numbers.size() * sizeof(uint32_t));
    }
    const size_t first_doc = bounds.size();
    for (uint32_t doc = 0; doc < s->n_docs; ++doc) {
      bounds.push_back(token + s->offsets[doc]);
      host_ranks[first_doc + doc] = s->ranks[doc];
      if (docs_by_rank.size() <= s->ranks[doc]) {
        docs_by_rank.resize(s->ranks[doc] + size_t{1});
      }
      docs_by_rank[s->ranks[doc]] = static_cast<uint32_t>(first_doc + doc);
    }
    token += s->n_tokens;
    while (bounds.size() % kDocsAligned != 0) {
      bounds.push_back(token);
    }
  }
  bounds.push_back(token);
  offsets.upload(0, bounds.data(), extent.offsets);
  ranks.upload(0, host_ranks.data(), extent.ranks);
  if (codec.coarse != nullptr) {
    pruned = std::make_unique<PrunedSearch>(queue, codec, segments, n_segments, all);
  }
  queue.wait();
}

/// Scores of queries [first, first + n), one after another: [n][n_docs].
void weft_resident::score(Workspace& work, const weft_scan_args& args, uint32_t first, uint32_t n,
                          float* scores) const {
  const size_t pass_words = size_t{extent.n_docs > 0} * all.dim / 32 * kTiles * kWarp;
  std::vector<QueryPass> passes;
  std::vector<size_t> round_ends;
  std::vector<Words<4>> rows;
  for (uint32_t round = 0; round_ends.empty() || passes.size() > round_ends.back(); ++round) {
    round_ends.push_back(passes.size());
    for (uint32_t i = 0; i < n; ++i) {
      const weft_query& query = args.queries[first + i];
      const uint32_t begin = round * kPassRows;
      if (begin >= query.n_tokens) {
        continue;
      }
      QueryPass pass = make_pass(query, all.dim, begin, rows);
      pass.scores = scores + i * extent.n_docs;
      passes.push_back(pass);
    }
  }
  round_ends.push_back(passes.size());

  const auto* const device_rows = grow<Words<4>>(work.queue, work.rows, rows.size());
  for (size_t i = 0; i < passes.size(); ++i) {
    passes[i].rows = device_rows + i * pass_words;
  }
  const auto* const device_passes = grow<QueryPass>(work.queue, work.passes, passes.size());
  work.rows->upload(0, rows.data(), rows.size() * sizeof rows[0]);
  work.passes->upload(0, passes.data(), passes.size() * sizeof passes[0]);
  for (size_t round = 0; round + 1 < round_ends.size(); ++round) {
    const size_t count = round_ends[round + 1] - round_ends[round];
    if (count > 0) {
      work.queue.scan({.all = all,
                       .allow = args.allow == nullptr ? nullptr : work.allow->as<uint64_t>(),
                       .passes = device_passes + round_ends[round],
                       .n_passes = static_cast<uint32_t>(count),
                       .nbits = nbits});
    }
  }
}

/// The k first keys of each of n queries, sorted.
void weft_resident::select(Workspace& work, uint32_t n, uint32_t k, float* scores,
                           std::vector<uint64_t>& keys) const {
  if (k > kMostSelected) {  // more than a slice may keep: sorted here
    keys.resize(size_t{n} * k);
    std::vector<float> values(extent.n_docs);
    std::vector<uint64_t> every(extent.n_docs);
    for (uint32_t i = 0; i < n; ++i) {
      work.queue.download(values.data(), scores + i * extent.n_docs,
                          values.size() * sizeof values[0]);
      for (size_t doc = 0; doc < values.size(); ++doc) {
        every[doc] = key_of(values[doc], host_ranks[doc]);
      }
      std::partial_sort(every.begin(), every.begin() + k, every.end());
      std::copy_n(every.begin(), k, keys.begin() + ptrdiff_t{k} * i);
    }
    return;
  }
  select_keys(work,
              {.first = {.scores = scores,
                         .ranks = all.ranks,
                         .keys = nullptr,
                         .kept = nullptr,
                         .n = all.n_docs,
                         .k = k,
                         .width = 0},
               .scores_stride = extent.n_docs,
               .keys_stride = 0,
               .kept_stride = 0,
               .n_queries = n},
              keys);
}

void weft_resident::scan_some(Workspace& work, const weft_scan_args& args, uint32_t first,
                              uint32_t n) const {
  float* const scores = grow<float>(work.queue, work.scores, n * extent.n_docs);
  score(work, args, first, n, scores);
  const auto k = static_cast<uint32_t>(std::min<uint64_t>(args.k, extent.n_docs));
  std::vector<uint64_t> keys;
  select(work, n, k, scores, keys);
  for (uint32_t i = 0; i < n; ++i) {
    const auto begin = keys.begin() + ptrdiff_t{i} * k;
    const auto end = std::lower_bound(begin, begin + k, kNoKey);
    args.counts[first + i] = static_cast<uint64_t>(end - begin);
    for (auto key = begin; key < end; ++key) {
      const size_t at = (first + i) * args.k + static_cast<size_t>(key - begin);
      args.docs[at] = docs_by_rank[static_cast<uint32_t>(*key)];
      args.scores[at] = score_of(*key);
    }
  }
}

template <class Use>
void weft_resident::with_workspace(const uint64_t* allow, const Use& use) const {
  WEFT_REQUIRE(is_ours(), ErrorCode::device,
               "the device was opened before this process was forked; open the searcher again");
  std::unique_ptr<Workspace> work;
  {
    const std::lock_guard lock(mutex);
    if (!idle.empty()) {
      work = std::move(idle.back());
      idle.pop_back();
    }
  }
  if (work == nullptr) {
    work = std::make_unique<Workspace>(device);
  }
  if (allow != nullptr) {
    const size_t n_words = extent.n_docs / kDocsAligned;
    grow<uint64_t>(work->queue, work->allow, n_words);
    work->allow->upload(0, allow, n_words * sizeof(uint64_t));
  }
  use(*work);
  const std::lock_guard lock(mutex);  // after an error it is not worth keeping
  idle.push_back(std::move(work));
}

void weft_resident::scan(const weft_scan_args& args) const {
  if (extent.n_docs == 0) {
    std::fill_n(args.counts, args.n_queries, 0);
    return;
  }
  with_workspace(args.allow, [&](Workspace& work) {
    const auto at_once = static_cast<uint32_t>(
        std::clamp<size_t>(kScoreBytes / (extent.n_docs * sizeof(float)), 1, kMostQueries));
    for (uint32_t first = 0; first < args.n_queries; first += at_once) {
      if (args.poll != nullptr && args.poll(args.poll_data) != 0) {
        throw Error(ErrorCode::cancelled, "cancelled");
      }
      scan_some(work, args, first, std::min(at_once, args.n_queries - first));
    }
  });
}

void weft_resident::search(const weft_search_args& args) const {
  WEFT_REQUIRE(pruned != nullptr, ErrorCode::invalid_argument,
               "search: loaded for scans alone, without coarse centroids");
  if (extent.n_docs == 0) {
    std::fill_n(args.counts, args.n_queries, weft_search_counts{});
    return;
  }
  with_workspace(args.allow, [&](Workspace& work) { pruned->search(work, args, docs_by_rank); });
}

namespace {

void probe_into(weft_probe* out) { probe(*out); }

int32_t describe_into(int32_t number, weft_device* out, weft_error* error) {
  return guarded(error, [&] { describe(number, *out); });
}

int32_t plan(const weft_codec* codec, const weft_segment* segments, uint32_t n_segments,
             uint64_t* bytes, weft_error* error) {
  return guarded(error, [&] { *bytes = Extent(*codec, segments, n_segments).bytes(); });
}

int32_t load(int32_t number, const weft_codec* codec, const weft_segment* segments,
             uint32_t n_segments, weft_resident** out, weft_error* error) {
  return guarded(error, [&] { *out = new weft_resident(number, *codec, segments, n_segments); });
}

void unload(weft_resident* resident) {
  if (resident->is_ours()) {
    const CallersDevice kept;
    delete resident;
  }
}

int32_t fetch_to(void* to, const void* from, uint64_t bytes, uint64_t stream, weft_error* error) {
  return guarded(error, [&] { fetch(to, from, bytes, stream); });
}

int32_t scan_with(const weft_resident* resident, const weft_scan_args* args, weft_error* error) {
  return guarded(error, [&] { resident->scan(*args); });
}

int32_t search_with(const weft_resident* resident, const weft_search_args* args,
                    weft_error* error) {
  return guarded(error, [&] { resident->search(*args); });
}

}  // namespace

const weft_backend* weft_backend_v1() {
  static const weft_backend backend{.abi = WEFT_BACKEND_ABI,
                                    .struct_size = sizeof(weft_backend),
                                    .name = kBackendName,
                                    .version = WEFT_VERSION,
                                    .toolkit = kToolkit,
                                    .probe = probe_into,
                                    .describe = describe_into,
                                    .plan = plan,
                                    .load = load,
                                    .unload = unload,
                                    .scan = scan_with,
                                    .fetch = fetch_to,
                                    .search = search_with,
                                    .open_builder = open_builder,
                                    .close_builder = close_builder,
                                    .label = label_with,
                                    .encode = encode_with};
  return &backend;
}
