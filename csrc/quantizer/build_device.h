// SPDX-License-Identifier: Apache-2.0
//
// The seam for building on something else than the CPU: the two things that take most of a build's time,
// rows to nearest centroids and tokens to codes. Defined in cuda/builder.cpp, over the plug-in that is opened
// when a device is first asked for (docs/adr/0004, 0029).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/views.h"
#include "quantizer/nearest.h"

namespace weft {

class Codec;
struct EncodedTokens;

/// What comes out is what the CPU makes, bit for bit. Const is safe from any thread. Throws Error(device),
/// and out_of_memory for the device's.
class BuildDevice {
 public:
  virtual ~BuildDevice() = default;

  /// As the caller may name it: "cuda:0".
  virtual const std::string& name() const noexcept = 0;

  /// labels[i] = the number that NearestCentroids::find() puts first for row i. tick: told how many more are
  /// done; may be empty, may throw to cancel.
  virtual void label(ByteRows rows, const NearestCentroids& centroids, uint16_t* labels,
                     const std::function<void(uint64_t)>& tick) const = 0;

  /// What Codec::encode() makes of rows, f16 [n, dim], contiguous: batch by batch and in order, on the calling
  /// thread, while the device goes on. May throw to cancel.
  virtual void encode(const Codec& codec, MatrixView<const uint16_t> rows, bool plane,
                      const std::function<void(const EncodedTokens& batch)>& take) const = 0;
};

/// "cuda" (the first one), "cuda:N", "auto" or "cpu". Null where the CPU is to build: for "cpu", and for
/// "auto" where there is no usable device. Error(device) where the device cannot be had.
std::shared_ptr<const BuildDevice> make_build_device(const std::string& device);

}  // namespace weft
