// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "kernels/kernels.h"

namespace weft::kernels {

/// The table in use: the best one this CPU runs, or the one WEFT_ISA names. Chosen once, on first
/// use; Error(invalid_argument) when WEFT_ISA names no usable table, listing those that are.
const Kernels& active();

/// Every table this CPU can run, best first; scalar is always the last.
std::span<const Kernels* const> available() noexcept;

}  // namespace weft::kernels
