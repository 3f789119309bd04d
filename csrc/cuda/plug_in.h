// SPDX-License-Identifier: Apache-2.0
//
// The plug-in as the native module has it: found, checked, and its devices by name. Nothing is opened
// before a device is asked for, and nothing is closed.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "cuda/abi.h"
#include "search/backend.h"

namespace weft {

/// `table` is null where there is none; `state` and `message` as in BackendStatus.
struct PlugIn {
  std::string state, message, library;
  const weft_backend* table = nullptr;
  int n_devices = 0;
};

/// Opened now, if it has not been.
PlugIn plug_in();

/// The number in "cuda:1", 0 for "cuda". Error(device) unless there is such a device.
int device_number(const PlugIn& plug, const std::string& device);

DeviceInfo describe(const weft_backend& table, int number);

/// Throws what a call of the plug-in reports.
inline void check(int32_t code, const weft_error& error) {
  WEFT_REQUIRE(code == 0, static_cast<ErrorCode>(code - 1), error.text);
}

}  // namespace weft
