// SPDX-License-Identifier: Apache-2.0
//
// What this GPU gives at most of what the kernels need, as one line of JSON: a kernel's time means
// something beside these only. Medians of repeated runs between events, on data that is not zero.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr size_t kLarge = size_t{4} << 30;   // many times the L2 cache
constexpr size_t kSmall = size_t{16} << 20;  // a part of it
constexpr size_t kUploaded = size_t{256} << 20;
constexpr int kRepeats = 15;
constexpr int kProducts = 4'096;
constexpr int kChains = 8;  // independent products of a warp
constexpr int kLaunches = 1'000;

void check(cudaError_t code, const char* what) {
  if (code != cudaSuccess) {
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
    std::exit(1);
  }
}

__global__ void fill(uint4* to, size_t n) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += gridDim.x * size_t{blockDim.x}) {
    const auto x = static_cast<uint32_t>(i) * 2'654'435'761u;
    to[i] = {x, x ^ 0x9e3779b9u, x * 3, ~x};
  }
}

__global__ void read(const uint4* from, size_t n, int rounds, uint32_t* out) {
  uint32_t sum = 0;
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
         i += gridDim.x * size_t{blockDim.x}) {
      uint4 x;  // past L1, which would hold what one multiprocessor reads again
      asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "l"(from + i));
      sum += x.x ^ x.y ^ x.z ^ x.w;
    }
  }
  if (sum == 12'345) {
    *out = sum;
  }
}

__global__ void multiply(uint32_t seed, int32_t* out) {
  int32_t sums[kChains][4] = {};
  const uint32_t a = seed * (threadIdx.x + 1) * 2'654'435'761u;
  for (int i = 0; i < kProducts; ++i) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      int32_t (&s)[4] = sums[chain];
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+r"(s[0]), "+r"(s[1]), "+r"(s[2]), "+r"(s[3])
          : "r"(a), "r"(a ^ 77u), "r"(a * 5), "r"(~a), "r"(a * 7), "r"(a * 11));
    }
  }
  int32_t sum = 0;
  for (const auto& s : sums) {
    sum += s[0] ^ s[1] ^ s[2] ^ s[3];
  }
  if (sum == 12'345) {
    *out = sum;
  }
}

__global__ void nothing() {}

/// Median seconds of run().
template <class Run>
double seconds(cudaStream_t stream, const Run& run) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = -2; i < kRepeats; ++i) {  // two to warm up
    check(cudaEventRecord(begin, stream), "event");
    run();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "run");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    if (i >= 0) {
      times.push_back(milliseconds / 1'000.0);
    }
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  const auto blocks = static_cast<unsigned>(device.multiProcessorCount) * 8;
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  uint4 *from, *to;
  check(cudaMalloc(&from, kLarge), "memory");
  check(cudaMalloc(&to, kLarge), "memory");
  auto* const out = reinterpret_cast<uint32_t*>(to);
  fill<<<blocks, 512, 0, stream>>>(from, kLarge / sizeof(uint4));

  const double copy = seconds(stream, [&] {
    check(cudaMemcpyAsync(to, from, kLarge, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  const double memory = seconds(
      stream, [&] { read<<<blocks, 256, 0, stream>>>(from, kLarge / sizeof(uint4), 1, out); });
  constexpr int kRounds = 200;
  const double cache = seconds(stream, [&] {
    read<<<blocks, 256, 0, stream>>>(from, kSmall / sizeof(uint4), kRounds, out);
  });
  const double products = seconds(stream, [&] {
    multiply<<<blocks, 256, 0, stream>>>(12'345u, reinterpret_cast<int32_t*>(to));
  });
  void* host;
  check(cudaMallocHost(&host, kUploaded), "host memory");
  const double upload = seconds(stream, [&] {
    check(cudaMemcpyAsync(to, host, kUploaded, cudaMemcpyHostToDevice, stream), "upload");
  });
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "graph");
  for (int i = 0; i < kLaunches; ++i) {
    nothing<<<1, 32, 0, stream>>>();
  }
  check(cudaStreamEndCapture(stream, &graph), "graph");
  check(cudaGraphInstantiate(&ready, graph, 0), "graph");
  const double launches = seconds(stream, [&] { check(cudaGraphLaunch(ready, stream), "graph"); });

  const double operations = 2.0 * 16 * 8 * 32 * kChains * kProducts * blocks * (256 / 32);
  std::printf(
      "{\"device\": \"%s\", \"multiprocessors\": %d, \"l2_bytes\": %d, "
      "\"copy_bytes_per_s\": %.4g, \"read_bytes_per_s\": %.4g, \"l2_bytes_per_s\": %.4g, "
      "\"mma_s8_operations_per_s\": %.4g, \"upload_bytes_per_s\": %.4g, "
      "\"graph_launch_us\": %.3f}\n",
      device.name, device.multiProcessorCount, device.l2CacheSize, 2.0 * kLarge / copy,
      kLarge / memory, static_cast<double>(kSmall) * kRounds / cache, operations / products,
      kUploaded / upload, 1e6 * launches / kLaunches);
  return 0;
}
