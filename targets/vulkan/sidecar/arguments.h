// Turns the arguments of a call into a launch.
#pragma once

#include <tvm/ffi/function.h>

#include "device.h"
#include "kernel_table.h"
#include "stream.h"

namespace greencc::vulkan {

// Checks the arguments against the kernel's table entry and the device's limits, and fills in everything of `launch`
// but its kernel. Returns the device: the one whose memory the first buffer is in.
// Throws a ValueError or RuntimeError that names the kernel and the parameter.
Device& ReadArguments(const KernelEntry& entry, tvm::ffi::PackedArgs arguments, Launch* launch);

}  // namespace greencc::vulkan
