// SPDX-License-Identifier: Apache-2.0
//
// The plug-in's host code of builds: batches of tokens on two queues, so that one is copied while the other is
// computed and the caller stores the one before.
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "cuda/host.h"

namespace weft::cuda {

namespace {

constexpr uint32_t kMostTokens = 1u << 20;  // of a batch
constexpr uint32_t kMostClips = 32;
constexpr size_t kAlignment = 16;

/// Pinned host memory.
class PinnedMemory {
 public:
  PinnedMemory(Queue& queue, size_t bytes)
      : queue_(&queue), data_(queue.allocate_pinned(std::max<size_t>(bytes, 1))) {}
  ~PinnedMemory() { queue_->release_pinned(data_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;

  char* data() const { return static_cast<char*>(data_); }

 private:
  Queue* queue_;
  void* data_;
};

/// Where the arrays of a batch's codes lie in one piece of memory.
struct CodeLayout {
  size_t parents, steps, children, multipliers, codes, plane, plane_multipliers, bytes;

  CodeLayout(uint32_t n, uint32_t dim, uint32_t nbits) {
    size_t at = 0;
    const auto take = [&](size_t width) {
      const size_t place = at;
      at += (n * width + kAlignment - 1) / kAlignment * kAlignment;
      return place;
    };
    parents = take(sizeof(uint16_t));
    steps = take(sizeof(uint16_t));
    children = take(1);
    multipliers = take(1);
    codes = take(size_t{dim} * nbits / 8);
    const size_t narrow = at;
    plane = take(dim / 2);
    plane_multipliers = take(1);
    bytes = nbits == 4 ? at : narrow;
  }
  CodeLayout() : CodeLayout(0, 0, 1) {}

  CodeArrays in(char* memory, bool with_plane) const {
    const auto byte = [&](size_t at) { return reinterpret_cast<uint8_t*>(memory + at); };
    const auto word = [&](size_t at) { return reinterpret_cast<uint16_t*>(memory + at); };
    return {.parents = word(parents),
            .steps = word(steps),
            .children = byte(children),
            .multipliers = byte(multipliers),
            .codes = byte(codes),
            .plane = with_plane ? byte(plane) : nullptr,
            .plane_multipliers = with_plane ? byte(plane_multipliers) : nullptr};
  }
};

/// One of the two batches under way: a queue, and memory of its own for everything between rows and codes.
struct Slot {
  Queue queue;
  PinnedMemory in, out;
  Memory rows, bytes, labels, cells, counts, ends, visits, tiles, n_tiles, found, codes;

  Slot(int device, uint32_t n, uint32_t dim, uint32_t n_cells, uint32_t row_dim, size_t code_bytes)
      : Slot(device, n, dim, n_cells, row_dim, code_bytes, row_dim > 0) {}

 private:
  /// Without `encodes` there are rows of bytes and labels alone.
  Slot(int device, uint32_t n, uint32_t dim, uint32_t n_cells, uint32_t row_dim, size_t code_bytes,
       bool encodes)
      : queue(device),
        in(queue, size_t{n} * (encodes ? row_dim * sizeof(uint16_t) : dim)),
        out(queue, encodes ? code_bytes : n * sizeof(uint16_t)),
        rows(queue, size_t{n} * row_dim * sizeof(uint16_t)),
        bytes(queue, size_t{n} * dim),
        labels(queue, encodes ? 0 : n * sizeof(uint16_t)),
        cells(queue, encodes ? n * kPlaces * sizeof(uint16_t) : 0),
        counts(queue, encodes ? n_cells * sizeof(uint32_t) : 0),
        ends(queue, encodes ? n_cells * sizeof(uint32_t) : 0),
        visits(queue, encodes ? n * kPlaces * sizeof(uint32_t) : 0),
        tiles(queue, encodes ? (n * kPlaces / kTileRows + n_cells + 1) * sizeof(VisitTile) : 0),
        n_tiles(queue, encodes ? sizeof(uint32_t) : 0),
        found(queue, encodes ? n * kPlaces * sizeof(FoundChild) : 0),
        codes(queue, code_bytes) {
    const std::vector<uint32_t> zeros(encodes ? n_cells : 0);
    counts.upload(0, zeros.data(), zeros.size() * sizeof zeros[0]);
  }
};

/// A copy in device memory of n values; where there are none, nothing.
template <class T>
struct Copied {
  Memory memory;

  Copied(Queue& queue, const T* from, size_t n) : memory(queue, n * sizeof(T)) {
    memory.upload(0, from, n * sizeof(T));
  }
  const T* data() const { return memory.as<T>(); }
};

void require(const weft_nearest& table, const weft_encoding* encoding, uint32_t tokens) {
  constexpr auto kBad = ErrorCode::invalid_argument;
  WEFT_REQUIRE(table.dim > 0 && table.dim % 32 == 0 && table.n > 0 && table.n <= 65'536, kBad,
               "centroids: ", table.n, " of dim ", table.dim,
               ", expected 1..65536 and a multiple of 32");
  WEFT_REQUIRE(
      table.n_groups == 1 || (table.n_groups % kQuarters == 0 && table.n_groups <= kMostGroups &&
                              table.n_groups >= kQuarters * kPlaces),
      kBad, "groups: found ", table.n_groups, ", expected 1, or 16..512 in fours");
  WEFT_REQUIRE(tokens > 0 && tokens <= kMostTokens, kBad, "tokens_at_once: found ", tokens,
               ", expected 1..", kMostTokens);
  if (encoding != nullptr) {
    const bool known_bits = encoding->nbits <= 8 && std::has_single_bit(encoding->nbits);
    WEFT_REQUIRE(known_bits && encoding->n_clips > 0 && encoding->n_clips <= kMostClips &&
                     (encoding->row_dim + 31) / 32 * 32 == table.dim,
                 kBad, "codec: ", encoding->nbits, " bits of rows of dim ", encoding->row_dim,
                 ", expected 1, 2, 4 or 8 and a dim that pads to ", table.dim);
  }
}

}  // namespace
}  // namespace weft::cuda

/// Centroids on one device, and two batches of tokens.
struct weft_builder {
  weft_builder(int device, const weft_nearest& table, const weft_encoding* encoding,
               uint32_t tokens_at_once);

  void label(const weft_label_args& args);
  void encode(const weft_encode_args& args);
  /// False in a child of the process that opened it, where the device must not be touched.
  bool is_ours() const { return getpid() == process; }

 private:
  weft::cuda::Batch batch_of(const weft::cuda::Slot& slot, uint32_t n) const;
  template <class Begin, class End>
  void stream(uint64_t n, const Begin& begin, const End& end);

  pid_t process = getpid();
  uint32_t at_once;
  bool encodes;
  weft::cuda::CodeLayout layout;
  weft::cuda::Queue queue;  ///< of the memories below
  weft::cuda::Copied<int8_t> rows;
  weft::cuda::Copied<int32_t> bias;
  weft::cuda::Copied<uint32_t> numbers, starts;
  weft::cuda::Copied<int8_t> means;
  weft::cuda::Copied<int32_t> mean_bias;
  weft::cuda::Copied<float> factors, clips;
  weft::cuda::Copied<int8_t> fine;
  weft::cuda::Copied<int32_t> fine_bias;
  weft::cuda::Copied<uint32_t> child_offsets;
  weft::cuda::NearestTable table;
  weft::cuda::Encoding how;
  weft::cuda::Slot slots[2];
};

using namespace weft;        // NOLINT(google-build-using-namespace): a struct of the C ABI
using namespace weft::cuda;  // NOLINT(google-build-using-namespace)

namespace {

/// n of an array that an encoding brings; 0 without one.
size_t count(const weft_encoding* encoding, size_t n) { return encoding == nullptr ? 0 : n; }

}  // namespace

weft_builder::weft_builder(int device, const weft_nearest& given, const weft_encoding* encoding,
                           uint32_t tokens_at_once)
    : at_once(tokens_at_once),
      encodes(encoding != nullptr),
      layout(encodes ? CodeLayout(tokens_at_once, given.dim, encoding->nbits) : CodeLayout()),
      queue(device),
      rows(queue, given.rows, size_t{given.n} * given.dim),
      bias(queue, given.bias, given.n),
      numbers(queue, given.numbers, given.n),
      starts(queue, given.starts, given.n_groups + size_t{1}),
      means(queue, given.means, given.n_groups > 1 ? size_t{given.n_groups} * given.dim : 0),
      mean_bias(queue, given.mean_bias, given.n_groups > 1 ? given.n_groups : 0),
      factors(queue, encodes ? encoding->factors : nullptr, count(encoding, 2 * given.dim)),
      clips(queue, encodes ? encoding->clips : nullptr, encodes ? encoding->n_clips : 0),
      fine(queue, encodes ? encoding->fine : nullptr,
           encodes ? size_t{encoding->child_offsets[given.n]} * given.dim : 0),
      fine_bias(queue, encodes ? encoding->fine_bias : nullptr,
                encodes ? encoding->child_offsets[given.n] : 0),
      child_offsets(queue, encodes ? encoding->child_offsets : nullptr,
                    count(encoding, given.n + size_t{1})),
      table{.all = {rows.data(), bias.data(), given.dim},
            .numbers = numbers.data(),
            .starts = starts.data(),
            .means = {given.n_groups > 1 ? means.data() : nullptr, mean_bias.data(), given.dim},
            .n = given.n,
            .n_groups = given.n_groups,
            .shift = given.shift,
            .mean_shifts = {}},
      how{},
      slots{{device, tokens_at_once, given.dim, given.n, encodes ? encoding->row_dim : 0,
             layout.bytes},
            {device, tokens_at_once, given.dim, given.n, encodes ? encoding->row_dim : 0,
             layout.bytes}} {
  std::copy_n(given.mean_shifts, kQuarters, table.mean_shifts);
  if (encodes) {
    how = {.factors = factors.data(),
           .fine = fine.data(),
           .fine_bias = fine_bias.data(),
           .child_offsets = child_offsets.data(),
           .clips = clips.data(),
           .row_dim = encoding->row_dim,
           .dim = given.dim,
           .n_clips = encoding->n_clips,
           .nbits = encoding->nbits,
           .token_scale = encoding->token_scale,
           .fine_scale = encoding->fine_scale,
           .widening = encoding->widening,
           .least = encoding->multiplier_least,
           .grid = encoding->multiplier_step,
           .plane_least = encoding->plane_multiplier_least,
           .plane_grid = encoding->plane_multiplier_step};
  }
}

Batch weft_builder::batch_of(const Slot& slot, uint32_t n) const {
  return {.table = table,
          .how = how,
          .rows = slot.rows.as<uint16_t>(),
          .bytes = slot.bytes.as<int8_t>(),
          .labels = encodes ? nullptr : slot.labels.as<uint16_t>(),
          .cells = slot.cells.as<uint16_t>(),
          .counts = slot.counts.as<uint32_t>(),
          .ends = slot.ends.as<uint32_t>(),
          .visits = slot.visits.as<uint32_t>(),
          .tiles = slot.tiles.as<VisitTile>(),
          .n_tiles = slot.n_tiles.as<uint32_t>(),
          .found = slot.found.as<FoundChild>(),
          .out = {},
          .n = n};
}

/// begin(slot, first, n) gives a slot its work, end(slot, first, n) waits and takes what came of it; the
/// next batch has begun by then.
template <class Begin, class End>
void weft_builder::stream(uint64_t n, const Begin& begin, const End& end) {
  WEFT_REQUIRE(is_ours(), ErrorCode::device,
               "the device was opened before this process was forked; open the writer again");
  const uint64_t n_batches = (n + at_once - 1) / at_once;
  const auto run = [&](const auto& part, uint64_t number) {
    const uint64_t first = number * at_once;
    part(slots[number % 2], first, static_cast<uint32_t>(std::min<uint64_t>(at_once, n - first)));
  };
  for (uint64_t number = 0; number < n_batches; ++number) {
    run(begin, number);
    if (number > 0) {
      run(end, number - 1);
    }
  }
  if (n_batches > 0) {
    run(end, n_batches - 1);
  }
}

namespace {

void require_more(int32_t stop) {
  if (stop != 0) {
    throw Error(ErrorCode::cancelled, "cancelled");
  }
}

}  // namespace

void weft_builder::label(const weft_label_args& args) {
  WEFT_REQUIRE(!encodes, ErrorCode::invalid_argument, "the builder encodes, it gives no labels");
  const size_t dim = table.all.dim;
  stream(
      args.n,
      [&](Slot& slot, uint64_t first, uint32_t n) {
        std::memcpy(slot.in.data(), args.rows + first * dim, n * dim);
        slot.queue.upload_later(slot.bytes.as<int8_t>(), slot.in.data(), n * dim);
        slot.queue.build(batch_of(slot, n), BuildStage::cells);
        slot.queue.download_later(slot.out.data(), slot.labels.as<uint16_t>(),
                                  n * sizeof(uint16_t));
      },
      [&](Slot& slot, uint64_t first, uint32_t n) {
        slot.queue.wait();
        std::memcpy(args.labels + first, slot.out.data(), n * sizeof(uint16_t));
        require_more(args.done == nullptr ? 0 : args.done(args.data, n));
      });
}

void weft_builder::encode(const weft_encode_args& args) {
  WEFT_REQUIRE(encodes, ErrorCode::invalid_argument, "the builder gives labels, it has no codec");
  const bool plane = args.plane != nullptr;
  WEFT_REQUIRE(!plane || how.nbits == 4, ErrorCode::invalid_argument,
               "a second plane goes with 4 bits, found ", how.nbits);
  const size_t row_bytes = how.row_dim * sizeof(uint16_t);
  stream(
      args.n,
      [&](Slot& slot, uint64_t first, uint32_t n) {
        std::memcpy(slot.in.data(), args.rows + first * how.row_dim, n * row_bytes);
        slot.queue.upload_later(slot.rows.as<uint16_t>(), slot.in.data(), n * row_bytes);
        Batch batch = batch_of(slot, n);
        batch.out = layout.in(slot.codes.as<char>(), plane);
        for (const BuildStage stage :
             {BuildStage::bytes, BuildStage::cells, BuildStage::plan, BuildStage::visit,
              BuildStage::children, BuildStage::codes}) {
          slot.queue.build(batch, stage);
        }
        slot.queue.download_later(slot.out.data(), slot.codes.as<char>(),
                                  plane ? layout.bytes : layout.plane);
      },
      [&](Slot& slot, uint64_t first, uint32_t n) {
        slot.queue.wait();
        const CodeArrays from = layout.in(slot.out.data(), plane);
        std::copy_n(from.parents, n, args.parents);
        std::copy_n(from.steps, n, args.steps);
        std::copy_n(from.children, n, args.children);
        std::copy_n(from.multipliers, n, args.multipliers);
        std::copy_n(from.codes, size_t{n} * how.dim * how.nbits / 8, args.codes);
        if (plane) {
          std::copy_n(from.plane, size_t{n} * how.dim / 2, args.plane);
          std::copy_n(from.plane_multipliers, n, args.plane_multipliers);
        }
        require_more(args.take(args.data, first, n));
      });
}

namespace weft::cuda {

int32_t open_builder(int32_t number, const weft_nearest* nearest, const weft_encoding* encoding,
                     uint32_t tokens_at_once, weft_builder** out, weft_error* error) {
  return guarded(error, [&] {
    require(*nearest, encoding, tokens_at_once);
    *out = new weft_builder(number, *nearest, encoding, tokens_at_once);
  });
}

void close_builder(weft_builder* builder) {
  if (builder->is_ours()) {
    const CallersDevice kept;
    delete builder;
  }
}

int32_t label_with(weft_builder* builder, const weft_label_args* args, weft_error* error) {
  return guarded(error, [&] { builder->label(*args); });
}

int32_t encode_with(weft_builder* builder, const weft_encode_args* args, weft_error* error) {
  return guarded(error, [&] { builder->encode(*args); });
}

}  // namespace weft::cuda
