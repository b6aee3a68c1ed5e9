// Devices and counters as JSON.
#pragma once

#include <tvm/ffi/string.h>

#include "device.h"
#include "features.h"
#include "profile.h"

namespace greencc::vulkan {

// A list with an object for every device of this machine. Opens none of them.
tvm::ffi::String DevicesJson(const std::vector<PhysicalDevice>& devices);

tvm::ffi::String StatisticsJson(const Statistics& statistics);

tvm::ffi::String TimesJson(const std::vector<KernelTime>& times);

tvm::ffi::String TextsJson(const std::vector<std::string>& texts);

}  // namespace greencc::vulkan
