// The checks that a SPIR-V module gets before a driver sees it: drivers trust what they are given.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel_table.h"

namespace greencc::vulkan {

// Checks that `words` is a whole module whose one way in, "main", is a compute shader of the kernel's workgroup size
// and whose bindings are the kernel's. Not a validator: that is spirv-val, when the kernel is compiled.
// Throws a ValueError that names the kernel.
void CheckSpirv(const KernelEntry& kernel, const std::vector<std::uint32_t>& words);

}  // namespace greencc::vulkan
