// SPDX-License-Identifier: Apache-2.0
//
// The seam for devices other than the CPU: what search asks of them. Defined in cuda/loader.cpp, over
// libraries that are opened when a device is first asked for (docs/adr/0004, 0025).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bitmap.h"
#include "index/segment.h"
#include "search/gather.h"
#include "search/params.h"
#include "search/query.h"

namespace weft {

/// Error(corrupt) where a manifest names a segment of rows beside a codec, or of another codec's codes;
/// `codec` is null where no segment has codes.
inline void require_codes(const Segment& segment, const Codec* codec) {
  if (segment.codec() != codec || segment.has_codes() != (codec != nullptr)) {
    throw Error(ErrorCode::corrupt, "the codes of a snapshot's segments are not of one codec",
                segment.path());
  }
}

struct ScannedDoc {
  DocRef ref;
  float score;
};

/// The answer to one query of a pruned search, and what it took.
struct PrunedDocs {
  std::vector<ScannedDoc> docs;  ///< best first
  uint64_t n_postings, n_candidates, n_skimmed, n_refined;
};

/// The codes of a list of segments in the memory of a device. Const is safe from any thread.
class Resident {
 public:
  virtual ~Resident() = default;

  /// As the caller may name it: "cuda:0".
  virtual const std::string& device() const noexcept = 0;

  /// For every query the `keep` documents of `matching` (one bitmap per segment) that score best by
  /// their codes, best first, equal scores by id: scores and order are those of the CPU, bit for bit.
  /// A document whose score is no number is left out. `poll` as for parallel_for().
  virtual std::vector<std::vector<ScannedDoc>> scan(std::span<const PreparedQuery* const> queries,
                                                    size_t keep,
                                                    std::span<const BitmapView> matching,
                                                    const std::function<bool()>& poll) const = 0;

  /// For every query the `keep` documents that the stages of a pruned search leave, from probe to refine,
  /// as scan() gives them: those of the CPU, bit for bit. `matching`: empty for all documents; is_filtered:
  /// whether lists are read beyond the budget because of it, see probe().
  virtual std::vector<PrunedDocs> search(std::span<const PreparedQuery* const> queries,
                                         const SearchParams& params, size_t keep,
                                         std::span<const BitmapView> matching, bool is_filtered,
                                         const std::function<bool()>& poll) const = 0;
};

/// Copies the codes to `device`: "cuda" (the first one), "cuda:N", "auto" or "cpu". Null where the CPU
/// is to search: for "cpu", and for "auto" where there are no codes, no usable device or too little
/// memory on the first one. Error(device) where the device cannot be had, or there are no codes for it;
/// out_of_memory where they do not fit.
std::shared_ptr<const Resident> make_resident(
    const std::string& device, std::span<const std::shared_ptr<const Segment>> segments,
    const Codec* codec);

/// A device that can be asked for.
struct DeviceInfo {
  std::string device;  ///< "cuda:0"
  std::string name;
  int major, minor;  ///< compute capability
  uint64_t free_bytes, total_bytes;
};

/// What became of the plug-in.
struct BackendStatus {
  std::string state;    ///< "ready", or why not: "absent", "broken", "mismatch", "no_driver" ...
  std::string message;  ///< for the user; empty when ready
  std::string library;  ///< path; empty when absent
  std::string toolkit;
  std::vector<DeviceInfo> devices;
};

/// Opens the plug-in where that has not been done, and looks for devices.
BackendStatus backend_status();

/// Copies memory that another library has on a device to the host, after what was given to a stream
/// before: 1 is the legacy default stream, 2 that of the thread, anything else a handle of the device's
/// own. Error(device) where no device can be had.
void fetch_device_memory(void* to, uint64_t from, size_t bytes, uint64_t stream);

/// Takes this library for the plug-in from now on; for tests.
void use_backend(const std::string& library);

}  // namespace weft
