// SPDX-License-Identifier: Apache-2.0
#include "cuda/plug_in.h"

#include <dlfcn.h>
#include <unistd.h>

#include <charconv>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

namespace weft {

namespace {

constexpr const char* kLibrary = "libweft_cuda.so";
constexpr const char* kSymbol = "weft_backend_v1";

/// The folder of the native module.
std::string own_folder() {
  Dl_info found{};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &found) == 0) {
    return ".";
  }
  const std::string path = found.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string_view state_name(int32_t state) {
  switch (state) {
    case WEFT_READY:
      return "ready";
    case WEFT_NO_DRIVER:
      return "no_driver";
    case WEFT_OLD_DRIVER:
      return "old_driver";
    case WEFT_NO_DEVICE:
      return "no_device";
    default:
      return "driver_error";
  }
}

PlugIn open_plug_in(const std::string& path) {
  const auto fail = [&](const char* state, std::string message) {
    return PlugIn{.state = state, .message = std::move(message), .library = path};
  };
  if (access(path.c_str(), F_OK) != 0) {
    PlugIn none = fail("absent", "no CUDA plug-in is installed: weft was built without nvcc");
    none.library.clear();
    return none;
  }
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = dlerror();
    return fail("broken",
                concat("the CUDA plug-in cannot be loaded: ", reason, "; install weft again"));
  }
  using Entry = const weft_backend* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, kSymbol));
  if (entry == nullptr) {
    return fail("broken", concat(path, ": not a plug-in of weft, it has no ", kSymbol));
  }
  const weft_backend* const table = entry();
  if (table->abi != WEFT_BACKEND_ABI || table->struct_size < sizeof(weft_backend)) {
    return fail("mismatch",
                concat(path, ": has interface ", table->abi, " of ", table->struct_size,
                       " bytes, expected ", WEFT_BACKEND_ABI, " of ", sizeof(weft_backend),
                       "; install the plug-in of weft ", WEFT_VERSION));
  }
  if (std::string_view(table->version) != WEFT_VERSION) {
    return fail("mismatch", concat(path, ": is of weft ", table->version, ", expected ",
                                   WEFT_VERSION, "; install both in the same version"));
  }
  weft_probe probe{};
  probe.struct_size = sizeof probe;
  table->probe(&probe);
  return {.state = std::string(state_name(probe.state)),
          .message = probe.text,
          .library = path,
          .table = table,
          .n_devices = probe.n_devices};
}

std::mutex mutex;
std::optional<PlugIn> opened;

/// The number in "cuda:1", 0 for "cuda".
int number_of(const std::string& device, std::string_view kind) {
  int number = 0;
  const std::string_view rest =
      std::string_view(device).substr(std::min(kind.size(), device.size()));
  bool is_good = device.starts_with(kind) && (rest.empty() || (rest[0] == ':' && rest.size() > 1));
  if (is_good && !rest.empty()) {
    const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), number);
    is_good = error == std::errc() && end == rest.data() + rest.size() && number >= 0;
  }
  WEFT_REQUIRE(is_good, ErrorCode::device, "device='", device, "': expected \"cpu\", \"", kind,
               "\", \"", kind, ":N\" or \"auto\"");
  return number;
}

}  // namespace

PlugIn plug_in() {
  const std::lock_guard lock(mutex);
  if (!opened) {
    opened = open_plug_in(concat(own_folder(), "/", kLibrary));
  }
  return *opened;
}

int device_number(const PlugIn& plug, const std::string& device) {
  const int number = number_of(device, plug.table == nullptr ? "cuda" : plug.table->name);
  WEFT_REQUIRE(plug.state == "ready", ErrorCode::device, "device='", device, "': ", plug.message);
  WEFT_REQUIRE(number < plug.n_devices, ErrorCode::device, "device='", device, "': expected 0..",
               plug.n_devices - 1, ", there are ", plug.n_devices, " devices");
  return number;
}

DeviceInfo describe(const weft_backend& table, int number) {
  weft_device found{};
  found.struct_size = sizeof found;
  weft_error error{};
  check(table.describe(number, &found, &error), error);
  return {concat(table.name, ":", number),
          found.name,
          found.major,
          found.minor,
          found.free_bytes,
          found.total_bytes};
}

BackendStatus backend_status() {
  const PlugIn plug = plug_in();
  BackendStatus status{.state = plug.state,
                       .message = plug.message,
                       .library = plug.library,
                       .toolkit = plug.table == nullptr ? "" : plug.table->toolkit,
                       .devices = {}};
  for (int number = 0; number < plug.n_devices; ++number) {
    status.devices.push_back(describe(*plug.table, number));
  }
  return status;
}

void fetch_device_memory(void* to, uint64_t from, size_t bytes, uint64_t stream) {
  const PlugIn plug = plug_in();
  WEFT_REQUIRE(plug.state == "ready", ErrorCode::device, plug.message);
  weft_error error{};
  check(plug.table->fetch(to, reinterpret_cast<const void*>(from), bytes, stream, &error), error);
}

void use_backend(const std::string& library) {
  PlugIn plug = open_plug_in(library);
  const std::lock_guard lock(mutex);
  opened = std::move(plug);
}

}  // namespace weft
