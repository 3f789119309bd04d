// SPDX-License-Identifier: Apache-2.0
//
// The native module's side of building on a device, behind quantizer/build_device.h.
#include <algorithm>
#include <exception>
#include <utility>

#include "cuda/plug_in.h"
#include "quantizer/codec.h"
#include "quantizer/row_rotator.h"

namespace weft {

namespace {

constexpr size_t kBatchBytes = size_t{64} << 20;  // of rows; there are two, in pinned memory too
constexpr size_t kMostTokens = size_t{1} << 20;
constexpr size_t kLeastTokens = 1'024;

uint32_t tokens_at_once(size_t n, size_t row_bytes) {
  const size_t most = std::clamp(kBatchBytes / row_bytes, kLeastTokens, kMostTokens);
  return static_cast<uint32_t>(std::clamp<size_t>(n, 1, most));
}

/// Centroids as the plug-in takes them, and what it borrows beside.
struct PlainNearest {
  std::vector<uint32_t> starts;
  std::vector<int8_t> means;
  std::vector<int32_t> mean_bias;
  weft_nearest table{};

  explicit PlainNearest(const NearestCentroids& from)
      : starts(from.starts().begin(), from.starts().end()) {
    const ByteRows rows = from.rows();
    table = {.struct_size = sizeof table,
             .dim = static_cast<uint32_t>(rows.dim),
             .n = static_cast<uint32_t>(rows.n),
             .n_groups = static_cast<uint32_t>(starts.size() - 1),
             .shift = from.shift(),
             .rows = rows.data,
             .bias = from.bias().data(),
             .numbers = from.numbers().data(),
             .starts = starts.data(),
             .means = nullptr,
             .mean_bias = nullptr,
             .mean_shifts = {}};
    for (size_t i = 0; i < from.quarters().size(); ++i) {
      const NearestCentroids& quarter = from.quarters()[i];
      const ByteRows part = quarter.rows();
      means.insert(means.end(), part.data, part.data + part.n * part.dim);
      mean_bias.insert(mean_bias.end(), quarter.bias().begin(), quarter.bias().end());
      table.mean_shifts[i] = quarter.shift();
    }
    table.means = means.data();
    table.mean_bias = mean_bias.data();
  }
};

/// A codec as the plug-in takes it.
struct PlainEncoding {
  std::vector<float> factors;
  weft_encoding encoding{};

  explicit PlainEncoding(const Codec& codec) {
    for (const size_t round : {0, 1}) {
      const auto part = codec.rotation().factors(round);
      factors.insert(factors.end(), part.begin(), part.end());
    }
    const auto clips = clip_factors(codec.nbits());
    encoding = {.struct_size = sizeof encoding,
                .nbits = codec.nbits(),
                .row_dim = static_cast<uint32_t>(codec.dim()),
                .n_clips = static_cast<uint32_t>(clips.size()),
                .factors = factors.data(),
                .fine = codec.fine().data(),
                .fine_bias = codec.tree().fine_bias().data(),
                .child_offsets = codec.child_offsets().data(),
                .clips = clips.data(),
                .token_scale = token_scale(codec.padded_dim()),
                .fine_scale = codec.fine_scale(),
                .widening = kPlaneWidening,
                .multiplier_least = codec.multiplier_grid().least,
                .multiplier_step = codec.multiplier_grid().step,
                .plane_multiplier_least = kFineGrid.least,
                .plane_multiplier_step = kFineGrid.step};
  }
};

class Builder {
 public:
  Builder(const weft_backend& table, int number, const weft_nearest& nearest,
          const weft_encoding* encoding, uint32_t at_once)
      : table_(table) {
    weft_error error{};
    check(table_.open_builder(number, &nearest, encoding, at_once, &builder_, &error), error);
  }
  ~Builder() { table_.close_builder(builder_); }
  Builder(const Builder&) = delete;
  Builder& operator=(const Builder&) = delete;

  weft_builder* get() const { return builder_; }

 private:
  const weft_backend& table_;
  weft_builder* builder_ = nullptr;
};

/// What the plug-in calls while it works. What is thrown here waits until it has ended.
template <class Call>
struct Callback {
  const Call& call;
  std::exception_ptr thrown;

  template <class... Numbers>
  static int32_t run(void* data, Numbers... numbers) {
    auto& self = *static_cast<Callback*>(data);
    try {
      self.call(numbers...);
      return 0;
    } catch (...) {
      self.thrown = std::current_exception();
      return 1;
    }
  }
  void finish(int32_t code, const weft_error& error) const {
    if (thrown != nullptr) {
      std::rethrow_exception(thrown);
    }
    check(code, error);
  }
};

class PlugInDevice final : public BuildDevice {
 public:
  PlugInDevice(const weft_backend& table, int number)
      : table_(table), number_(number), name_(concat(table.name, ":", number)) {}

  const std::string& name() const noexcept override { return name_; }

  void label(ByteRows rows, const NearestCentroids& centroids, uint16_t* labels,
             const std::function<void(uint64_t)>& tick) const override {
    const PlainNearest nearest(centroids);
    const Builder builder(table_, number_, nearest.table, nullptr,
                          tokens_at_once(rows.n, rows.dim));
    const auto told = [&](uint64_t now) {
      if (tick) {
        tick(now);
      }
    };
    Callback<decltype(told)> done{told, nullptr};
    const weft_label_args args{.struct_size = sizeof args,
                               .n = rows.n,
                               .rows = rows.data,
                               .labels = labels,
                               .done = &Callback<decltype(told)>::template run<uint64_t>,
                               .data = &done};
    weft_error error{};
    const int32_t code = table_.label(builder.get(), &args, &error);
    done.finish(code, error);
  }

  void encode(const Codec& codec, MatrixView<const uint16_t> rows, bool plane,
              const std::function<void(const EncodedTokens&)>& take) const override {
    WEFT_REQUIRE(rows.cols == codec.dim() && rows.stride == rows.cols, ErrorCode::invalid_argument,
                 "rows have dim ", rows.cols, ", the codec has ", codec.dim());
    const PlainNearest nearest(codec.tree().cells());
    const PlainEncoding encoding(codec);
    const uint32_t at_once = tokens_at_once(rows.rows, rows.cols * sizeof(uint16_t));
    const Builder builder(table_, number_, nearest.table, &encoding.encoding, at_once);
    EncodedTokens batch;
    const auto resize = [&](size_t n) {
      batch.parents.resize(n);
      batch.children.resize(n);
      batch.steps.resize(n);
      batch.multipliers.resize(n);
      batch.codes.resize(n * codec.padded_dim() * codec.nbits() / 8);
      batch.plane.resize(plane ? n * codec.padded_dim() / 2 : 0);
      batch.plane_multipliers.resize(plane ? n : 0);
    };
    resize(at_once);
    const auto taken = [&](uint64_t, uint64_t n) {
      resize(n);  // the last one may be smaller
      take(batch);
    };
    Callback<decltype(taken)> done{taken, nullptr};
    const weft_encode_args args{
        .struct_size = sizeof args,
        .n = rows.rows,
        .rows = rows.data,
        .parents = batch.parents.data(),
        .steps = batch.steps.data(),
        .children = batch.children.data(),
        .multipliers = batch.multipliers.data(),
        .codes = batch.codes.data(),
        .plane = plane ? batch.plane.data() : nullptr,
        .plane_multipliers = batch.plane_multipliers.data(),
        .take = &Callback<decltype(taken)>::template run<uint64_t, uint64_t>,
        .data = &done};
    weft_error error{};
    const int32_t code = table_.encode(builder.get(), &args, &error);
    done.finish(code, error);
  }

 private:
  const weft_backend& table_;
  int number_;
  std::string name_;
};

}  // namespace

std::shared_ptr<const BuildDevice> make_build_device(const std::string& device) {
  if (device == "cpu") {
    return nullptr;
  }
  const PlugIn plug = plug_in();
  const bool decides = device == "auto";
  if (decides && plug.state != "ready") {
    return nullptr;
  }
  const int number = decides ? 0 : device_number(plug, device);
  return std::make_shared<PlugInDevice>(*plug.table, number);
}

}  // namespace weft
