// SPDX-License-Identifier: Apache-2.0
#include "kernels/dispatch.h"

#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace weft::kernels {

extern const Kernels scalar_table;
#if defined(__x86_64__)
extern const Kernels avx2_table;
extern const Kernels avx512_table;
#elif defined(__aarch64__)
extern const Kernels neon_table;
#endif

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool has_avx2() noexcept {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() noexcept {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi");
}
#elif defined(__aarch64__)
bool has_dot_product() noexcept {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}
#endif

/// The usable tables, best first.
struct Tables {
  const Kernels* tables[3] = {};
  size_t count = 0;

  Tables() noexcept {
#if defined(__x86_64__)
    if (has_avx512()) tables[count++] = &avx512_table;
    if (has_avx2()) tables[count++] = &avx2_table;
#elif defined(__aarch64__)
    if (has_dot_product()) tables[count++] = &neon_table;
#endif
    tables[count++] = &scalar_table;
  }
};

const Kernels& choose() {
  const auto usable = available();
  const char* wanted = std::getenv("WEFT_ISA");
  if (wanted == nullptr || *wanted == '\0') return *usable.front();
  std::string names;
  for (const Kernels* table : usable) {
    if (std::string_view(wanted) == table->name) return *table;
    names += concat(names.empty() ? "" : ", ", table->name);
  }
  throw Error(ErrorCode::invalid_argument,
              concat("WEFT_ISA=", wanted, ": expected one of ", names, " on this CPU"));
}

}  // namespace

std::span<const Kernels* const> available() noexcept {
  static const Tables tables;
  return {tables.tables, tables.count};
}

const Kernels& active() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace weft::kernels
