// SPDX-License-Identifier: Apache-2.0
//
// The runtime over CUDA. Linked statically with the toolkit's own, which finds the driver when it is
// first asked; the driver must be as new as the toolkit.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "cuda/launch_cuda.h"

namespace weft::cuda {

#define WEFT_STRING_OF(x) #x
#define WEFT_STRING(x) WEFT_STRING_OF(x)

const char* const kBackendName = "cuda";
const char* const kToolkit =
    WEFT_STRING(__CUDACC_VER_MAJOR__) "." WEFT_STRING(__CUDACC_VER_MINOR__);

namespace {

constexpr int kLeastMajor = 8;  // s8 products 32 deep
constexpr unsigned kBlocksPerProcessor = 4;
constexpr size_t kGraphsKept = 32;

/// "13.0" of 13000.
std::string version_text(int version) { return concat(version / 1000, ".", version % 1000 / 10); }

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) {
    return;
  }
  cudaGetLastError();  // an error of one call is not one of the next; lasting ones come again
  WEFT_REQUIRE(code != cudaErrorMemoryAllocation, ErrorCode::out_of_memory, what,
               ": not enough device memory");
  throw Error(ErrorCode::device,
              concat(what, ": CUDA error ", static_cast<int>(code), ", ", cudaGetErrorName(code),
                     ": ", cudaGetErrorString(code), "; if it stays, start a new process"));
}

template <unsigned kBits, unsigned kSteps>
__global__ void __launch_bounds__(kScanWarps* kWarp, 2)
    scan_kernel(const __grid_constant__ ScanLaunch launch) {
  const uint32_t number = blockIdx.x * kScanWarps + threadIdx.x / kWarp;
  scan_share<kBits, kSteps>(Warp{}, launch, number, gridDim.x * kScanWarps);
}

__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const __grid_constant__ SelectLaunch launch) {
  __shared__ uint64_t keys[kSlice];
  select_share(Block{}, launch, blockIdx.x, blockIdx.y, keys);
}

/// Two thread blocks of 256 on a multiprocessor where registers are what is short.
template <BuildStage kStage, unsigned kSteps>
__global__ void __launch_bounds__(kMostBuildWarps* kWarp, 2)
    build_kernel(const __grid_constant__ Batch batch, unsigned warp_scratch) {
  extern __shared__ uint4 scratch[];
  const uint32_t n_warps = blockDim.x / kWarp, own = threadIdx.x / kWarp;
  build_share<kStage, kSteps>(Warp{}, batch, blockIdx.x * n_warps + own, gridDim.x * n_warps,
                              reinterpret_cast<char*>(scratch) + own * warp_scratch);
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(const __grid_constant__ Batch batch) {
  __shared__ uint32_t sums[2][kPlanThreads];
  plan_visits(PlanBlock{}, batch, sums);
}

}  // namespace

void probe(weft_probe& out) {
  const auto say = [&](weft_state state, const std::string& text) {
    out.state = state;
    copy_text(text, out.text);
  };
  int driver = 0, runtime = 0, n_devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t code = cudaGetDeviceCount(&n_devices);
  cudaGetLastError();
  out.n_devices = code == cudaSuccess ? n_devices : 0;
  if (code == cudaSuccess && n_devices > 0) {
    say(WEFT_READY, "");
  } else if (driver == 0) {
    say(WEFT_NO_DRIVER, "no NVIDIA driver on this machine");
  } else if (code == cudaErrorInsufficientDriver) {
    say(WEFT_OLD_DRIVER, concat("the NVIDIA driver serves CUDA ", version_text(driver),
                                ", this plug-in needs ", version_text(runtime), " or newer"));
  } else if (code == cudaErrorNoDevice || code == cudaSuccess) {
    const char* const visible = std::getenv("CUDA_VISIBLE_DEVICES");
    say(WEFT_NO_DEVICE,
        concat("the NVIDIA driver sees no device",
               visible == nullptr ? std::string()
                                  : concat(" (CUDA_VISIBLE_DEVICES=\"", visible, "\")")));
  } else {
    say(WEFT_DRIVER_ERROR, concat("the NVIDIA driver does not start: CUDA error ",
                                  static_cast<int>(code), ", ", cudaGetErrorName(code)));
  }
}

void describe(int device, weft_device& out) {
  int n_devices = 0;
  check(cudaGetDeviceCount(&n_devices), "devices");
  WEFT_REQUIRE(device >= 0 && device < n_devices, ErrorCode::device, "device ", device,
               ": expected 0..", n_devices - 1);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "device");
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaSetDevice(device), "device");
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "device memory");
  out.major = properties.major;
  out.minor = properties.minor;
  out.free_bytes = free_bytes;
  out.total_bytes = total_bytes;
  copy_text(properties.name, out.name);
}

void fetch(void* to, const void* from, size_t bytes, uint64_t stream) {
  cudaPointerAttributes found{};
  check(cudaPointerGetAttributes(&found, from), "array");
  WEFT_REQUIRE(found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged,
               ErrorCode::device, "its address is not in the memory of a CUDA device");
  check(cudaSetDevice(found.device), "device");
  const auto after = reinterpret_cast<cudaStream_t>(stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, after), "download");
  check(cudaStreamSynchronize(after), "download");
}

namespace {

/// A function of the driver; null where there is no driver.
template <class Function>
Function* driver_function(const char* name) {
  constexpr unsigned kVersion = 12'000;
  void* found = nullptr;
#if CUDART_VERSION >= 12'050
  cudaGetDriverEntryPointByVersion(name, &found, kVersion, cudaEnableDefault, nullptr);
#else
  static_cast<void>(kVersion);
  cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, nullptr);
#endif
  cudaGetLastError();
  return reinterpret_cast<Function*>(found);
}

}  // namespace

// By the driver's context, not the device's number: the caller's may be one of its own, and setting a
// device that nobody has used would make a context there.
CallersDevice::CallersDevice() {
  static const auto current = driver_function<int(void**)>("cuCtxGetCurrent");
  if (current != nullptr && current(&context_) != 0) {
    context_ = nullptr;
  }
}

CallersDevice::~CallersDevice() {
  static const auto make_current = driver_function<int(void*)>("cuCtxSetCurrent");
  if (make_current != nullptr) {
    make_current(context_);
  }
}

struct Queue::State {
  /// Launches that were recorded, by what they were given.
  struct Graph {
    Pruned all;
    cudaGraphExec_t ready;
  };

  int device;
  unsigned n_blocks = 0;
  cudaStream_t stream = nullptr;
  std::vector<Graph> graphs = {};  ///< the last one used last

  void use() const { check(cudaSetDevice(device), "device"); }
};

Queue::Queue(int device) : state_(new State{device}) {
  weft_device found{};
  describe(device, found);
  WEFT_REQUIRE(found.major >= kLeastMajor, ErrorCode::device, found.name, ": compute capability ",
               found.major, ".", found.minor, ", expected ", kLeastMajor, ".0 or newer");
  int n_processors = 0;
  check(cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device), "device");
  state_->n_blocks = static_cast<unsigned>(n_processors) * kBlocksPerProcessor;
  check(cudaStreamCreateWithFlags(&state_->stream, cudaStreamNonBlocking), "stream");
}

Queue::~Queue() {
  cudaSetDevice(state_->device);
  cudaStreamSynchronize(state_->stream);
  for (const State::Graph& graph : state_->graphs) {
    cudaGraphExecDestroy(graph.ready);
  }
  cudaStreamDestroy(state_->stream);
}

void* Queue::allocate(size_t bytes) {
  state_->use();
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), concat("device memory: ", bytes, " bytes").c_str());
  return memory;
}

void Queue::release(void* memory) noexcept {
  cudaSetDevice(state_->device);
  cudaStreamSynchronize(state_->stream);
  cudaFree(memory);
}

void Queue::upload(void* to, const void* from, size_t bytes) {
  upload_later(to, from, bytes);
  wait();
}

void Queue::download(void* to, const void* from, size_t bytes) {
  download_later(to, from, bytes);
  wait();
}

void Queue::upload_later(void* to, const void* from, size_t bytes) {
  state_->use();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, state_->stream), "upload");
}

void Queue::download_later(void* to, const void* from, size_t bytes) {
  state_->use();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, state_->stream), "download");
}

void* Queue::allocate_pinned(size_t bytes) {
  state_->use();
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), concat("pinned memory: ", bytes, " bytes").c_str());
  return memory;
}

void Queue::release_pinned(void* memory) noexcept {
  cudaSetDevice(state_->device);
  cudaStreamSynchronize(state_->stream);
  cudaFreeHost(memory);
}

void Queue::scan(const ScanLaunch& launch) {
  state_->use();
  const unsigned least = (launch.n_passes + kScanWarps - 1) / kScanWarps;  // a warp for each pass
  const unsigned n_blocks = std::max(state_->n_blocks, least);
  with_instance(launch.nbits, launch.all.dim, [&]<unsigned kBits, unsigned kSteps>() {
    scan_kernel<kBits, kSteps><<<n_blocks, kScanWarps * kWarp, 0, state_->stream>>>(launch);
  });
  check(cudaGetLastError(), "scan");
}

void Queue::select(const SelectLaunch& launch) {
  state_->use();
  const dim3 grid(launch.slice_count(), launch.n_queries);
  select_kernel<<<grid, kSelectThreads, 0, state_->stream>>>(launch);
  check(cudaGetLastError(), "select");
}

void Queue::stage(Stage stage, const Pruned& all, uint32_t number) {
  state_->use();
  launch_stage(stage, all, number, state_->n_blocks * kScanWarps, state_->stream);
  check(cudaGetLastError(), "stage");
}

void Queue::replay(const Pruned& all, const std::function<void()>& record) {
  state_->use();
  auto& graphs = state_->graphs;
  auto found = std::find_if(graphs.begin(), graphs.end(),
                            [&](const State::Graph& graph) { return graph.all == all; });
  if (found == graphs.end()) {
    check(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal), "graph");
    cudaGraph_t graph = nullptr;
    try {
      record();
    } catch (...) {
      cudaStreamEndCapture(state_->stream, &graph);
      cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(state_->stream, &graph), "graph");
    cudaGraphExec_t ready = nullptr;
    const cudaError_t code = cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    check(code, "graph");
    if (graphs.size() == kGraphsKept) {
      wait();  // it may still run
      cudaGraphExecDestroy(graphs.front().ready);
      graphs.erase(graphs.begin());
    }
    found = graphs.insert(graphs.end(), {all, ready});
  }
  std::rotate(found, found + 1, graphs.end());
  check(cudaGraphLaunch(graphs.back().ready, state_->stream), "graph");
}

void Queue::clear(void* memory, size_t bytes) {
  state_->use();
  check(cudaMemsetAsync(memory, 0, bytes, state_->stream), "clear");
}

void Queue::build(const Batch& batch, BuildStage stage) {
  state_->use();
  if (stage == BuildStage::plan) {
    plan_kernel<<<1, kPlanThreads, 0, state_->stream>>>(batch);
  } else {
    const uint32_t dim = batch.table.all.dim;
    const size_t scratch = (build_scratch(stage, dim) + 15) / 16 * 16;
    const auto n_warps =
        static_cast<unsigned>(std::clamp<size_t>(kBlockScratch / scratch, 1, kMostBuildWarps));
    with_build_stage(stage, dim, [&]<BuildStage kStage, unsigned kSteps>() {
      build_kernel<kStage, kSteps>
          <<<state_->n_blocks, n_warps * kWarp, n_warps * scratch, state_->stream>>>(
              batch, static_cast<unsigned>(scratch));
    });
  }
  check(cudaGetLastError(), "build");
}

void Queue::wait() { check(cudaStreamSynchronize(state_->stream), "device"); }

}  // namespace weft::cuda
